// Run tasks 0 .. n-1 on n_threads threads; each thread gets its index. The first exception of a task stops the others
// and is thrown again here.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

inline uint32_t restkv_threads(uint32_t wanted, uint32_t n_tasks) {
    const uint32_t n = wanted > 0 ? wanted : std::max(1u, std::thread::hardware_concurrency());
    return std::max(1u, std::min(n, n_tasks));
}

inline void restkv_parallel(uint32_t n_tasks, uint32_t n_threads,
                            const std::function<void(uint32_t task, uint32_t thread)> & work) {
    std::atomic<uint32_t> next{ 0 };
    std::exception_ptr    error;
    std::mutex            mutex;
    const auto            loop = [&](uint32_t thread) {
        try {
            for (uint32_t task; (task = next.fetch_add(1)) < n_tasks;) {
                work(task, thread);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            error = error ? error : std::current_exception();
            next  = n_tasks;
        }
    };
    std::vector<std::thread> threads;
    for (uint32_t t = 1; t < n_threads; ++t) {
        try {
            threads.emplace_back(loop, t);
        } catch (...) {
            break;  // no more threads, or no memory for one: fewer do the same work
        }
    }
    loop(0);
    for (std::thread & thread : threads) {
        thread.join();
    }
    if (error) {
        std::rethrow_exception(error);
    }
}
