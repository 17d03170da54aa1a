// The id map (id_map.cpp), for what looks ids up in it.
#pragma once
#include <cstdint>

#include "export.h"

// Rows of `num` ids, numbered from `first` on; one less for an id without a row.
HEADRACE_API void id_map_lookup(const void* map, const int64_t* ids, int64_t num, int64_t first, int64_t* rows);
