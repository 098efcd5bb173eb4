// Threads that run the same function side by side and meet after each of its parts: inside ggml's own threads while a
// graph is computed, or on threads of ours.

#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

class restkv_team {
public:
    // The first exception since the last call, or null. One thread asks, after the last part.
    std::exception_ptr take_error() noexcept {
        failed.store(false, std::memory_order_release);
        std::exception_ptr taken = error;
        error                    = nullptr;
        return taken;
    }

private:
    friend class restkv_member;

    void note_error() noexcept {
        const std::lock_guard<std::mutex> lock(mutex);
        error = error ? error : std::current_exception();
        failed.store(true, std::memory_order_release);
    }

    void wait(uint32_t n) noexcept {
        const uint32_t now = round.load(std::memory_order_acquire);
        if (n_here.fetch_add(1, std::memory_order_acq_rel) + 1 == n) {
            n_here.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        // parts are short, and a thread of ggml has nothing else to do
        for (uint32_t i = 0; round.load(std::memory_order_acquire) == now; ++i) {
            if (i > 1000) {
                std::this_thread::yield();
            }
        }
    }

    std::atomic<uint32_t> n_here{ 0 };
    std::atomic<uint32_t> round{ 0 };
    std::atomic<bool>     failed{ false };
    std::mutex            mutex;
    std::exception_ptr    error;
};

// A thread of a team.
class restkv_member {
public:
    restkv_member(restkv_team & team, uint32_t i, uint32_t n) : i(i), n(n), team(team) {}

    const uint32_t i;
    const uint32_t n;  // threads of the team

    // Run a part and wait until every thread has run its own. After an exception, of any thread, parts are skipped; all
    // threads must still come to every part.
    template <typename F>
    void run(const F & part) noexcept {
        if (!team.failed.load(std::memory_order_acquire)) {
            try {
                part();
            } catch (...) {
                team.note_error();
            }
        }
        team.wait(n);
    }

    // A part of the first thread alone.
    template <typename F>
    void run_first(const F & part) noexcept {
        run([&] {
            if (i == 0) {
                part();
            }
        });
    }

private:
    restkv_team & team;
};

// Run body on a team of at most n_threads; fewer where the system gives no more. Throws the first exception of its parts.
inline void restkv_run_team(uint32_t n_threads, const std::function<void(restkv_member & member)> & body) {
    restkv_team              team;
    std::atomic<uint32_t>    n{ 0 };  // known when the last thread has been made
    std::vector<std::thread> threads;
    const auto               start = [&](uint32_t thread) {
        while (n.load(std::memory_order_acquire) == 0) {
            std::this_thread::yield();
        }
        restkv_member member(team, thread, n.load(std::memory_order_acquire));
        body(member);
    };
    for (uint32_t t = 1; t < n_threads; ++t) {
        try {
            threads.emplace_back(start, t);
        } catch (...) {
            break;
        }
    }
    n.store((uint32_t) threads.size() + 1, std::memory_order_release);
    start(0);
    for (std::thread & thread : threads) {
        thread.join();
    }
    if (const std::exception_ptr error = team.take_error()) {
        std::rethrow_exception(error);
    }
}
