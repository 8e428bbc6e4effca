// Runs CUDA C on a CPU behind the driver's own entry points: a block's threads are fibers, a barrier is a real one.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define __global__
#define __shared__ static
#define __launch_bounds__(threads)

struct Index { unsigned x, y, z; };
static Index blockIdx, threadIdx;

template <class A> static inline A max(A a, A b) { return a > b ? a : b; }
template <class A> static inline A min(A a, A b) { return a < b ? a : b; }

struct nv_bfloat16 {
  uint16_t bits;
  nv_bfloat16() = default;
  explicit nv_bfloat16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    bits = uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);  // to nearest, ties to even; no NaN comes here
  }
  operator float() const {
    uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};

namespace shim {
constexpr size_t stack_bytes = 32 << 10;
struct Fiber { ucontext_t context; std::vector<char> stack; bool done; };
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static unsigned current;
struct Entry { const char* name; void (*call)(void**); bool barriers; };
static const Entry* entry;
static void** arguments;

template <class... A, size_t... I>
static void invoke(void (*kernel)(A...), void** parameters, std::index_sequence<I...>) {
  kernel(*reinterpret_cast<A*>(parameters[I])...);
}
template <class... A> static void invoke(void (*kernel)(A...), void** parameters) {
  invoke(kernel, parameters, std::index_sequence_for<A...>{});
}

static void run_fiber() {
  entry->call(arguments);
  fibers[current].done = true;
}

static void run_block(unsigned threads) {
  if (!entry->barriers) {
    for (threadIdx = {0, 0, 0}; threadIdx.x < threads; ++threadIdx.x) entry->call(arguments);
    return;
  }
  if (fibers.size() < threads) fibers.resize(threads);
  for (unsigned at = 0; at < threads; ++at) {
    Fiber& fiber = fibers[at];
    fiber.stack.resize(stack_bytes);
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, run_fiber, 0);
  }
  unsigned done = 0;
  for (bool backwards = false; done < threads; backwards = !backwards) {  // the order of threads must not matter
    for (unsigned at = 0; at < threads; ++at) {
      current = backwards ? threads - 1 - at : at;
      threadIdx = {current, 0, 0};
      swapcontext(&scheduler, &fibers[current].context);
      done += fibers[current].done;
    }
    if (done != 0 && done != threads) {
      std::fprintf(stderr, "%s: %u of %u threads ended before a barrier\n", entry->name, done, threads);
      std::abort();
    }
  }
}
}  // namespace shim

static void __syncthreads() { swapcontext(&shim::fibers[shim::current].context, &shim::scheduler); }
