// The HSTU layer on AMX tiles.
#include "level/layer.cpp"
