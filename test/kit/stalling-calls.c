// Preloaded before a program: calls of one name on paths that contain a given text block while a file exists, as on a mount whose server
// is unreachable. STALL_CALL (open, link, fsync, pread, pwrite), STALL_PATH (text), STALL_WHILE (file). Each blocked call adds a line to
// STALL_WHILE.hit.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int (*real_open)(const char *, int, ...);

/* Resolves a path relative to an open folder (/proc/self/fd/7/name) to its real path. */
static const char *from_root(const char *path, char *room, size_t length) {
  char link_name[64];
  int digits = 0;
  if (sscanf(path, "/proc/self/fd/%*d%n", &digits) < 0 || !digits || digits >= (int)sizeof link_name) return path;
  snprintf(link_name, sizeof link_name, "%.*s", digits, path);
  ssize_t folder = readlink(link_name, room, length - 1);
  if (folder < 0) return path;
  snprintf(room + folder, length - folder, "%s", path + digits);
  return room;
}

static void stall(const char *call, const char *path) {
  const char *wanted = getenv("STALL_CALL"), *text = getenv("STALL_PATH"), *file = getenv("STALL_WHILE");
  char room[2 * PATH_MAX];
  if (!wanted || !text || !file || !path || strcmp(wanted, call)) return;
  path = from_root(path, room, sizeof room);
  if (!strstr(path, text) || access(file, F_OK)) return;
  char hit[PATH_MAX];
  snprintf(hit, sizeof hit, "%s.hit", file);
  if (!real_open) real_open = dlsym(RTLD_NEXT, "open64");
  int fd = real_open(hit, O_CREAT | O_WRONLY | O_APPEND, 0644);
  if (fd >= 0) {
    dprintf(fd, "%s %s\n", call, path);
    close(fd);
  }
  while (!access(file, F_OK)) usleep(20000);
}

static void stall_fd(const char *call, int fd) {
  char link_name[64], path[PATH_MAX];
  if (!getenv("STALL_CALL")) return;
  snprintf(link_name, sizeof link_name, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link_name, path, sizeof path - 1);
  if (length < 0) return;
  path[length] = 0;
  stall(call, path);
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list list; \
    va_start(list, flags); \
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, mode_t) : 0; \
    va_end(list); \
    stall("open", path); \
    return real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

int link(const char *from, const char *to) { REAL(link); stall("link", to); return real(from, to); }
int fsync(int fd) { REAL(fsync); stall_fd("fsync", fd); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); stall_fd("fsync", fd); return real(fd); }
ssize_t pread(int fd, void *into, size_t length, off_t at) { REAL(pread); stall_fd("pread", fd); return real(fd, into, length, at); }
ssize_t pread64(int fd, void *into, size_t length, off64_t at) { REAL(pread64); stall_fd("pread", fd); return real(fd, into, length, at); }
ssize_t pwrite(int fd, const void *from, size_t length, off_t at) { REAL(pwrite); stall_fd("pwrite", fd); return real(fd, from, length, at); }
ssize_t pwrite64(int fd, const void *from, size_t length, off64_t at) { REAL(pwrite64); stall_fd("pwrite", fd); return real(fd, from, length, at); }
