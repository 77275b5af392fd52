// The lock of the tables that all threads share; it is held for a look-up and no longer.
#pragma once
#include <pthread.h>

#include <mutex>

// A fork waits for it: else the child might find it locked, for ever, by a thread that it has not got.
inline std::mutex& table_lock() {
  static std::mutex* const lock = [] {
    pthread_atfork([] { table_lock().lock(); }, [] { table_lock().unlock(); }, [] { table_lock().unlock(); });
    return new std::mutex;  // stays: threads may still be in a call when the process ends
  }();
  return *lock;
}
