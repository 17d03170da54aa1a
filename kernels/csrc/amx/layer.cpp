// The HSTU layer with its attention on AMX tiles, for bfloat16.
#include "level/layer.cpp"
