// Preloaded before a program: every positioned write to a file whose path contains FLIP_PATH stores its first byte with one bit flipped,
// as failing memory or a failing cable would.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_wanted(int fd) {
  char link_name[64], path[PATH_MAX];
  const char *text = getenv("FLIP_PATH");
  snprintf(link_name, sizeof link_name, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link_name, path, sizeof path - 1);
  if (!text || length < 0) return 0;
  path[length] = 0;
  return strstr(path, text) != NULL;
}

#define PWRITE(name, offset) \
  ssize_t name(int fd, const void *from, size_t length, offset at) { \
    static ssize_t (*real)(int, const void *, size_t, offset); \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    if (length == 0 || !is_wanted(fd)) return real(fd, from, length, at); \
    char *copy = malloc(length); \
    memcpy(copy, from, length); \
    copy[0] ^= 1; \
    ssize_t written = real(fd, copy, length, at); \
    free(copy); \
    return written; \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
