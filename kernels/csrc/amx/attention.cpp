// HSTU attention on AMX tiles, for bfloat16.
#include "level/attention.cpp"
