// Preloaded into a test process: puts a page without access right behind every block of aligned_alloc, which is where
// the kernels' working memory comes from, and takes the access to freed blocks away. For glibc.
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#define PAGE ((size_t)4096)
#define ROOM ((size_t)1 << 40)  // of addresses; memory is taken where it is used only

extern void __libc_free(void*);
extern void* __libc_memalign(size_t, size_t);

static char* region;
static uint32_t* pages_of;  // of the block that begins at a page of the region
static atomic_size_t used;

__attribute__((constructor)) static void reserve(void) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  char* room = mmap(NULL, ROOM, PROT_NONE, flags, -1, 0);
  pages_of = mmap(NULL, ROOM / PAGE * sizeof(uint32_t), PROT_READ | PROT_WRITE, flags, -1, 0);
  if (room != MAP_FAILED && (void*)pages_of != MAP_FAILED) region = room;
}

void* aligned_alloc(size_t alignment, size_t size) {
  const size_t whole = (size + alignment - 1) / alignment * alignment, bytes = (whole + PAGE - 1) / PAGE * PAGE;
  if (!region || alignment > PAGE) return __libc_memalign(alignment, size);
  const size_t at = atomic_fetch_add(&used, bytes + PAGE);
  if (at + bytes > ROOM || mprotect(region + at, bytes, PROT_READ | PROT_WRITE)) return NULL;
  char* block = region + at + bytes - whole;
  pages_of[(size_t)(block - region) / PAGE] = (uint32_t)(bytes / PAGE);
  for (size_t i = 0; i < whole; ++i) block[i] = (char)0xfe;  // what is never written must not look like zeros
  return block;
}

void free(void* p) {
  char* block = p;
  if (!region || block < region || block >= region + ROOM) {
    __libc_free(p);
    return;
  }
  const size_t page = (size_t)(block - region) / PAGE, bytes = pages_of[page] * PAGE;
  madvise(region + page * PAGE, bytes, MADV_DONTNEED);
  mprotect(region + page * PAGE, bytes, PROT_NONE);
}
