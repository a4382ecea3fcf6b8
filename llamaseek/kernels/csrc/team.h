// Threads that stay awake for a whole step, so that none is woken for each of its products.
#pragma once
#include <ATen/Parallel.h>
#include <sched.h>

#include <atomic>

namespace llamaseek {

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// The thread that made it hands out jobs; those in `serve` take part in the ones that are open when
// they look. A job is over when all who entered it have left it, so one that the system holds up
// elsewhere keeps nobody waiting.
class Team {
 public:
  // The team of the thread that hands out jobs; null on all others.
  static Team*& current() {
    static thread_local Team* team = nullptr;
    return team;
  }

  template <class Job>
  void run(const Job& job) {
    call_ = [](const void* of) { (*static_cast<const Job*>(of))(); };
    job_ = &job;
    state_.fetch_add(kRound | kOpen, std::memory_order_release);
    job();
    state_.fetch_sub(kOpen, std::memory_order_acq_rel);
    while (state_.load(std::memory_order_acquire) % kOpen) pause_briefly();
  }

  void serve() {
    uint64_t done = 0;
    for (int idle = 0; !over_.load(std::memory_order_acquire);) {
      uint64_t seen = state_.load(std::memory_order_relaxed);
      if (!(seen & kOpen) || seen / kRound == done) {
        pause_briefly();
        if (++idle % kPatience == 0) sched_yield();
      } else if (state_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) {
        call_(job_);
        state_.fetch_sub(1, std::memory_order_release);
        done = seen / kRound;
        idle = 0;
      }
    }
  }

  void dismiss() { over_.store(true, std::memory_order_release); }

 private:
  // How many are in a job, whether it is open to more, and the number of jobs so far.
  static constexpr uint64_t kOpen = 1 << 16, kRound = 1 << 17;
  static constexpr int kPatience = 4096;
  alignas(64) std::atomic<uint64_t> state_{0};
  std::atomic<bool> over_{false};
  void (*call_)(const void*) = nullptr;
  const void* job_ = nullptr;
};

// Runs body with all threads of PyTorch's pool at its `share`s' disposal.
template <class Body>
void with_team(const Body& body) {
  const int64_t threads = at::get_num_threads();
  if (threads == 1 || at::in_parallel_region()) return body();
  Team team;
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t) {
    if (begin) return team.serve();
    struct Leading {
      explicit Leading(Team& team) { Team::current() = &team; }
      ~Leading() {
        Team::current()->dismiss();
        Team::current() = nullptr;
      }
    } leading(team);
    body();
  });
}

}  // namespace llamaseek
