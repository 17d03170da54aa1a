// HSTU attention on AMX tiles.
#include "level/attention.cpp"
