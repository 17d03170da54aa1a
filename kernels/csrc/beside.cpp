// A thread that runs functions of this library beside its caller, one at a time: what `kernels.beside` describes.
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "export.h"

namespace {

using Work = int (*)(const void*);

class Beside {
public:
    ~Beside() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            ends_ = true;
        }
        begun_.notify_one();
        if (thread_.joinable()) thread_.join();
    }

    // The caller waits for what it started before. Throws if the system has no thread; then nothing was started.
    void start(Work work, const void* call) {
        if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            work_ = work, call_ = call;
        }
        begun_.notify_one();
    }

    // What the thread has not begun, because no processor was free, the caller does itself.
    int wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        if (work_) do_next(lock);
        done_.wait(lock, [this] { return !runs_; });
        return status_;
    }

private:
    void run() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            begun_.wait(lock, [this] { return work_ || ends_; });
            if (!work_) return;
            do_next(lock);
            done_.notify_one();
        }
    }

    void do_next(std::unique_lock<std::mutex>& lock) {
        const Work work = work_;
        work_ = nullptr, runs_ = true;
        lock.unlock();
        const int status = work(call_);
        lock.lock();
        status_ = status, runs_ = false;
    }

    std::mutex mutex_;
    std::condition_variable begun_, done_;
    std::thread thread_;
    Work work_ = nullptr;  // nullptr: nothing to begin
    const void* call_ = nullptr;
    int status_ = 0;
    bool runs_ = false, ends_ = false;
};

}  // namespace

// nullptr if out of memory.
HEADRACE_API void* headrace_beside_new() {
    try {
        return new Beside;
    } catch (...) {
        return nullptr;
    }
}
// Returns after what was started has ended.
HEADRACE_API void headrace_beside_delete(void* beside) { delete static_cast<Beside*>(beside); }

// Returns 1 if the system has no thread.
HEADRACE_API int headrace_beside_start(void* beside, Work work, const void* call) {
    try {
        static_cast<Beside*>(beside)->start(work, call);
        return 0;
    } catch (const std::system_error&) {
        return 1;
    }
}
// What the function returned that was started last.
HEADRACE_API int headrace_beside_wait(void* beside) { return static_cast<Beside*>(beside)->wait(); }
