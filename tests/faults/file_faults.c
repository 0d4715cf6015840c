/* Faults at the n-th file operation below a folder, for LD_PRELOAD.
 *
 * FAULT_ROOT  folder; operations elsewhere pass and are not counted
 * FAULT_MATCH if set, only operations whose path contains it are counted
 * FAULT_AT    n, from 1; 0 or unset: none
 * FAULT_KIND  kill: SIGKILL before the operation. ENOSPC, EDQUOT, EFBIG: that
 *             operation and all later ones that need space fail so. EIO, EROFS:
 *             all that write
 * FAULT_READS set: opening to read is counted too
 * FAULT_LOG   file to which the name of each counted operation is appended
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITES, SPACE, READS }; /* What an operation does to the disk. */

static atomic_int count;
static atomic_int failing; /* the n-th was reached */

static void resolve(int directory, const char *path, char *out) {
  char link[64];
  ssize_t size = 0;
  if (path && path[0] == '/') {
    snprintf(out, PATH_MAX, "%s", path);
    return;
  }
  if (path && directory == AT_FDCWD)
    snprintf(link, sizeof link, "/proc/self/cwd");
  else
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
  size = syscall(SYS_readlink, link, out, PATH_MAX - 1);
  out[size > 0 ? size : 0] = 0;
  if (path && size > 0 && size + strlen(path) + 2 < PATH_MAX) {
    strcat(out, "/");
    strcat(out, path);
  }
}

/* Whether the operation has to fail. */
static int fault(const char *name, int directory, const char *path,
                 int does_what) {
  const char *root = getenv("FAULT_ROOT"), *at = getenv("FAULT_AT");
  const char *kind = getenv("FAULT_KIND"), *log = getenv("FAULT_LOG");
  const char *match = getenv("FAULT_MATCH");
  char full[PATH_MAX];
  int number, limit = at ? atoi(at) : 0;
  if (!root || !*root) return 0;
  if (does_what == READS && !getenv("FAULT_READS")) return 0;
  resolve(directory, path, full);
  if (strncmp(full, root, strlen(root))) return 0;
  if (match && !failing && !strstr(full, match)) return 0;
  number = atomic_fetch_add(&count, 1) + 1;
  if (log && *log) {
    int file = syscall(SYS_openat, AT_FDCWD, log,
                       O_WRONLY | O_APPEND | O_CREAT, 0644);
    char line[PATH_MAX + 32];
    int size = snprintf(line, sizeof line, "%s %s\n", name, full);
    syscall(SYS_write, file, line, size);
    syscall(SYS_close, file);
  }
  if (!limit || number < limit || !kind) return 0;
  if (!strcmp(kind, "kill")) {
    if (number == limit) syscall(SYS_kill, getpid(), SIGKILL);
    return 0;
  }
  failing = 1;
  if (!strcmp(kind, "EIO") || !strcmp(kind, "EROFS")) {
    errno = kind[1] == 'I' ? EIO : EROFS;
    return does_what != READS;
  }
  errno = !strcmp(kind, "EDQUOT") ? EDQUOT
          : !strcmp(kind, "EFBIG") ? EFBIG
                                   : ENOSPC;
  return does_what == SPACE;
}

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static int does(int flags) {
  if (flags & O_CREAT) return SPACE;
  return flags & (O_WRONLY | O_RDWR) ? WRITES : READS;
}

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    va_list list; \
    mode_t mode; \
    va_start(list, flags); \
    mode = va_arg(list, mode_t); \
    va_end(list); \
    REAL(int, name, const char *, int, ...); \
    if (fault("open", AT_FDCWD, path, does(flags))) return -1; \
    return real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int directory, const char *path, int flags, ...) { \
    va_list list; \
    mode_t mode; \
    va_start(list, flags); \
    mode = va_arg(list, mode_t); \
    va_end(list); \
    REAL(int, name, int, const char *, int, ...); \
    if (fault("open", directory, path, does(flags))) return -1; \
    return real(directory, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *data, size_t size) {
  REAL(ssize_t, write, int, const void *, size_t);
  return fault("write", file, NULL, SPACE) ? -1 : real(file, data, size);
}

#define PWRITE(name, offset_t) \
  ssize_t name(int file, const void *data, size_t size, offset_t offset) { \
    REAL(ssize_t, name, int, const void *, size_t, offset_t); \
    return fault("pwrite", file, NULL, SPACE) ? -1 \
                                          : real(file, data, size, offset); \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define ON_FILE(name, does_what) \
  int name(int file) { \
    REAL(int, name, int); \
    return fault(#name, file, NULL, does_what) ? -1 : real(file); \
  }
ON_FILE(fsync, SPACE)
ON_FILE(fdatasync, SPACE)

ssize_t writev(int file, const struct iovec *parts, int number) {
  REAL(ssize_t, writev, int, const struct iovec *, int);
  return fault("writev", file, NULL, SPACE) ? -1 : real(file, parts, number);
}

#define TRUNCATE(name, offset_t) \
  int name(int file, offset_t size) { \
    REAL(int, name, int, offset_t); \
    return fault("truncate", file, NULL, WRITES) ? -1 : real(file, size); \
  }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int link(const char *from, const char *to) {
  REAL(int, link, const char *, const char *);
  return fault("link", AT_FDCWD, to, SPACE) ? -1 : real(from, to);
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
  REAL(int, linkat, int, const char *, int, const char *, int);
  return fault("link", b, to, SPACE) ? -1 : real(a, from, b, to, flags);
}

int mkdir(const char *path, mode_t mode) {
  REAL(int, mkdir, const char *, mode_t);
  return fault("mkdir", AT_FDCWD, path, SPACE) ? -1 : real(path, mode);
}

int mkdirat(int directory, const char *path, mode_t mode) {
  REAL(int, mkdirat, int, const char *, mode_t);
  return fault("mkdir", directory, path, SPACE) ? -1 : real(directory, path, mode);
}

int rename(const char *from, const char *to) {
  REAL(int, rename, const char *, const char *);
  return fault("rename", AT_FDCWD, to, WRITES) ? -1 : real(from, to);
}

int renameat(int a, const char *from, int b, const char *to) {
  REAL(int, renameat, int, const char *, int, const char *);
  return fault("rename", b, to, WRITES) ? -1 : real(a, from, b, to);
}

int unlink(const char *path) {
  REAL(int, unlink, const char *);
  return fault("unlink", AT_FDCWD, path, WRITES) ? -1 : real(path);
}

int unlinkat(int directory, const char *path, int flags) {
  REAL(int, unlinkat, int, const char *, int);
  return fault("unlink", directory, path, WRITES) ? -1
                                                  : real(directory, path, flags);
}

int rmdir(const char *path) {
  REAL(int, rmdir, const char *);
  return fault("rmdir", AT_FDCWD, path, WRITES) ? -1 : real(path);
}
