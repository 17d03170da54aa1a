"""Fused ops of an HSTU recommender, each beside its plain PyTorch definition.

Shape legend of the whole project (suffixes of tensor names):

    B  users in a jagged batch          T  tokens of all users, packed without padding
    H  heads                            D  width of a query/key head, or of an embedding row
    E  width of a value head            M  model width
    G  bias heads (1 = shared, or H)    P  relative positions in a bias    K  time buckets
    R  query rows of a loss             S  negatives                       U, V  rows of a table
    offsets_B1  (B+1,) int64, offsets_B1[b]:offsets_B1[b+1] are user b's tokens; offsets_B1[0] == 0, [-1] == T
"""

from kernels.adagrad import rowwise_adagrad_ as rowwise_adagrad_
from kernels.backend import KernelUnavailable as KernelUnavailable
from kernels.id_map import IdMap as IdMap
from kernels.length import kept_length as kept_length
from kernels.length import stochastic_length as stochastic_length
from kernels.softmax import full_softmax as full_softmax
from kernels.softmax import rank_of_target as rank_of_target
from kernels.softmax import sampled_softmax as sampled_softmax
from kernels.softmax import top_k as top_k
