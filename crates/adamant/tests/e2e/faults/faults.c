/* Lets one file system call of a program fail. Preloaded; counts the calls on files below
 * ADAMANT_FAULTS_DIR over all threads, so that "the n-th" is one call and not one of each thread.
 * The file ADAMANT_FAULTS is the switch: six numbers (which calls, n, errno, calls so far, calls that
 * failed, whether all later ones fail, too) and, 64 bytes in, what failed last. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, TRUNCATE = 16, MKDIR = 32, UNLINK = 64, READ = 128, STAT = 256 };

struct control { int mask, nth, error, count, hits, sticky, pad[10]; char what[192]; };
static struct control *control;
static const char *dir;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("ADAMANT_FAULTS");
    dir = getenv("ADAMANT_FAULTS_DIR");
    int fd = path && dir ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) control = page;
    close(fd);
}

static int fails(int kind, const char *call, const char *path) {
    if (!control || !(control->mask & kind) || !path || strncmp(path, dir, strlen(dir))) return 0;
    int n = __sync_add_and_fetch(&control->count, 1);
    if (control->sticky ? n < control->nth : n != control->nth) return 0;
    if (__sync_fetch_and_add(&control->hits, 1) == 0)
        snprintf(control->what, sizeof control->what, "%s %.170s", call, path + strlen(dir));
    errno = control->error;
    return 1;
}

static int fails_fd(int kind, const char *call, int fd) {
    if (!control || !(control->mask & kind)) return 0;
    char link[64], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return fails(kind, call, path);
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define ON_FD(type, name, kind, args, names, fd) \
    type name args { REAL(name); return fails_fd(kind, #name, fd) ? -1 : real names; }
#define ON_PATH(type, name, kind, args, names, path) \
    type name args { REAL(name); return fails(kind, #name, path) ? -1 : real names; }
#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        return fails(OPEN, #name, path) ? -1 : real(path, flags, mode); }

OPENS(open)
OPENS(open64)
int openat(int at, const char *path, int flags, ...) {
    REAL(openat); va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest);
    return fails(OPEN, "openat", path) ? -1 : real(at, path, flags, mode);
}
ON_FD(ssize_t, write, WRITE, (int fd, const void *b, size_t n), (fd, b, n), fd)
ON_FD(ssize_t, pwrite, WRITE, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), fd)
ON_FD(ssize_t, pwrite64, WRITE, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o), fd)
ON_FD(ssize_t, writev, WRITE, (int fd, const struct iovec *v, int n), (fd, v, n), fd)
ON_FD(int, fsync, SYNC, (int fd), (fd), fd)
ON_FD(int, fdatasync, SYNC, (int fd), (fd), fd)
ON_FD(int, ftruncate, TRUNCATE, (int fd, off_t n), (fd, n), fd)
ON_FD(int, ftruncate64, TRUNCATE, (int fd, off64_t n), (fd, n), fd)
ON_PATH(int, rename, RENAME, (const char *a, const char *b), (a, b), b)
ON_PATH(int, renameat, RENAME, (int x, const char *a, int y, const char *b), (x, a, y, b), b)
ON_PATH(int, renameat2, RENAME, (int x, const char *a, int y, const char *b, unsigned f), (x, a, y, b, f), b)
ON_PATH(int, link, RENAME, (const char *a, const char *b), (a, b), b)
ON_PATH(int, mkdir, MKDIR, (const char *path, mode_t mode), (path, mode), path)
ON_PATH(int, unlink, UNLINK, (const char *path), (path), path)
ON_PATH(int, unlinkat, UNLINK, (int at, const char *path, int flags), (at, path, flags), path)
ON_FD(ssize_t, read, READ, (int fd, void *b, size_t n), (fd, b, n), fd)
ON_FD(ssize_t, pread64, READ, (int fd, void *b, size_t n, off64_t o), (fd, b, n, o), fd)
ON_FD(off64_t, lseek64, STAT, (int fd, off64_t o, int w), (fd, o, w), fd)
ON_PATH(int, lstat64, STAT, (const char *path, struct stat64 *s), (path, s), path)
ON_PATH(int, stat64, STAT, (const char *path, struct stat64 *s), (path, s), path)
ON_FD(int, fstat64, STAT, (int fd, struct stat64 *s), (fd, s), fd)
int statx(int at, const char *path, int flags, unsigned mask, struct statx *s) {
    REAL(statx);
    int no = path && *path ? fails(STAT, "statx", path) : fails_fd(STAT, "statx", at);
    return no ? -1 : real(at, path, flags, mask, s);
}
