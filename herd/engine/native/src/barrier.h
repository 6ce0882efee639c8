// Where threads wait for each other. OpenMP's own barrier spins for a millisecond; when another process has the
// processor of the thread that is waited for, that is a millisecond lost a hundred times in a token. This one spins for
// as long as a barrier of undisturbed threads takes, and then sleeps.
#pragma once
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>

namespace herd {

class Barrier {
  public:
    void wait(int threads) {
        const int round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_seq_cst);
            if (sleepers_.load(std::memory_order_seq_cst)) futex(FUTEX_WAKE_PRIVATE, INT_MAX);
            return;
        }
        for (int i = 0; i < kSpins; i++) {
            if (round_.load(std::memory_order_acquire) != round) return;
            pause();
        }
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        while (round_.load(std::memory_order_seq_cst) == round) futex(FUTEX_WAIT_PRIVATE, round);
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }

  private:
    static constexpr int kSpins = 3000;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> round_{0};
    alignas(64) std::atomic<int> sleepers_{0};

    void futex(int what, int value) { syscall(SYS_futex, &round_, what, value, nullptr, nullptr, 0); }
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }
};

}  // namespace herd
