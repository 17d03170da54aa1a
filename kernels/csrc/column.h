// A growable array of plain values.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include <algorithm>
#include <new>

namespace headrace {

// Like std::vector, for plain values: a large one grows without being copied, because realloc moves its pages.
template <class T>
class Column {
public:
    Column() = default;
    Column(const Column&) = delete;
    Column& operator=(const Column&) = delete;
    ~Column() { free(data_); }

    size_t size() const { return size_; }
    size_t capacity() const { return capacity_; }
    T& operator[](size_t i) { return data_[i]; }
    const T& operator[](size_t i) const { return data_[i]; }
    const T* begin() const { return data_; }
    const T* end() const { return data_ + size_; }
    void reserve(size_t capacity) {
        if (capacity <= capacity_) return;
        void* p = realloc(static_cast<void*>(data_), capacity * sizeof(T));
        if (!p) throw std::bad_alloc();
        data_ = static_cast<T*>(p);
        capacity_ = capacity;
    }
    void push_back(T value) { data_[size_++] = value; }  // the caller has reserved room
    void assign(size_t size, T value) {
        reserve(size);
        size_ = size;
        std::fill(data_, data_ + size, value);
    }

private:
    T* data_ = nullptr;
    size_t size_ = 0, capacity_ = 0;
};

}  // namespace headrace
