// Fresh memory in large pages: handing out 4 KB at a time takes the system longer than a cell takes to fill them.
#pragma once
#include <cstddef>
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

// Asks for pages of 2 MB where whole ones lie in fresh memory of at least 4 MB, as numpy does. A system that has none
// to give, or is told to give none, goes on with small ones.
inline void prefer_large_pages(void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr size_t kPage = size_t(2) << 20;
  if (bytes < 2 * kPage) return;
  const uintptr_t begin = (uintptr_t(data) + kPage - 1) / kPage * kPage,
                  end = (uintptr_t(data) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}
