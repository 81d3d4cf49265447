/* Lets one file system call of a program fail: faults SWITCH DIRECTORY PROGRAM ARGUMENTS...
 *
 * The kernel asks (seccomp, user notification) before it carries out a call of the program, whoever
 * makes it: the C library, or code that enters the kernel by itself. A child of the program answers.
 * Calls on files below DIRECTORY are counted over all threads, so that "the n-th" is one call and not
 * one of each thread. A call is written as its name and the kind of its file: names of content, of tiles
 * and of files on their way are all one. SWITCH is a file of 1 MiB: six numbers (which calls, n, errno,
 * calls so far, calls that failed, whether all later ones of whatever kind fail, too), 64 bytes in the
 * call that failed first, 256 bytes in the name of the only thread whose calls count, 512 bytes in the
 * only call that counts, both empty for all, and 4,096 bytes in the first 5,000 calls that counted, 192
 * bytes each. Exits with 75 where this kernel or host does not allow it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "no architecture that this was written for"
#endif

enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, TRUNCATE = 16, MKDIR = 32, UNLINK = 64, READ = 128, STAT = 256,
       MARK = 512, LOCK = 1024, LIST = 2048 };
/* Where a call says which file: by descriptor, by path, or by path below a directory; and in which argument. */
enum { FD, PATH, AT };
struct call { int number, kind, how, argument; const char *name; };
#define CALL(name, kind, how, argument) { SYS_##name, kind, how, argument, #name }
static const struct call calls[] = {
    CALL(openat, OPEN, AT, 0), CALL(openat2, OPEN, AT, 0),
    CALL(write, WRITE, FD, 0), CALL(pwrite64, WRITE, FD, 0), CALL(writev, WRITE, FD, 0), CALL(pwritev, WRITE, FD, 0),
    CALL(copy_file_range, WRITE, FD, 2), CALL(fallocate, WRITE, FD, 0),
    CALL(fsync, SYNC, FD, 0), CALL(fdatasync, SYNC, FD, 0), CALL(sync_file_range, SYNC, FD, 0), CALL(syncfs, SYNC, FD, 0),
    CALL(renameat2, RENAME, AT, 2), CALL(renameat, RENAME, AT, 2), CALL(linkat, RENAME, AT, 2), CALL(symlinkat, RENAME, AT, 1),
    CALL(ftruncate, TRUNCATE, FD, 0), CALL(truncate, TRUNCATE, PATH, 0),
    CALL(mkdirat, MKDIR, AT, 0), CALL(unlinkat, UNLINK, AT, 0),
    CALL(read, READ, FD, 0), CALL(pread64, READ, FD, 0), CALL(readv, READ, FD, 0), CALL(preadv, READ, FD, 0),
    CALL(sendfile, READ, FD, 1), CALL(lseek, STAT, FD, 0), CALL(fstat, STAT, FD, 0), CALL(newfstatat, STAT, AT, 0),
    CALL(statx, STAT, AT, 0), CALL(readlinkat, STAT, AT, 0), CALL(statfs, STAT, PATH, 0), CALL(fstatfs, STAT, FD, 0),
    CALL(faccessat, STAT, AT, 0), CALL(faccessat2, STAT, AT, 0),
    CALL(fchmod, MARK, FD, 0), CALL(fchmodat, MARK, AT, 0), CALL(fchownat, MARK, AT, 0), CALL(utimensat, MARK, AT, 0),
    CALL(flock, LOCK, FD, 0), CALL(fcntl, LOCK, FD, 0), CALL(getdents64, LIST, FD, 0),
#ifdef SYS_open
    CALL(open, OPEN, PATH, 0), CALL(creat, OPEN, PATH, 0), CALL(rename, RENAME, PATH, 1), CALL(link, RENAME, PATH, 1),
    CALL(symlink, RENAME, PATH, 1), CALL(mkdir, MKDIR, PATH, 0), CALL(unlink, UNLINK, PATH, 0), CALL(rmdir, UNLINK, PATH, 0),
    CALL(stat, STAT, PATH, 0), CALL(lstat, STAT, PATH, 0), CALL(access, STAT, PATH, 0), CALL(readlink, STAT, PATH, 0),
    CALL(chmod, MARK, PATH, 0),
#endif
};
enum { CALLS = sizeof calls / sizeof *calls };

enum { SWITCH = 1 << 20, LOGGED = 5000 };
struct control { int mask, nth, error, count, hits, sticky, pad[10]; char what[192], thread[16], rest[240], only[192], more[3392], log[LOGGED][192]; };
_Static_assert(offsetof(struct control, only) == 512 && offsetof(struct control, log) == 4096, "as above");
static struct control *control;
static const char *dir;

/* Of a descriptor, which may be AT_FDCWD. */
static int name_of(int pid, int fd, char *path, size_t size) {
    char link[64];
    if (fd == AT_FDCWD) snprintf(link, sizeof link, "/proc/%d/cwd", pid);
    else snprintf(link, sizeof link, "/proc/%d/fd/%d", pid, fd);
    ssize_t n = readlink(link, path, size - 1);
    path[n > 0 ? n : 0] = 0;
    return n > 0;
}

/* A path in the memory of the caller, page by page: what follows its end may not be there. */
static void text_of(int pid, unsigned long long from, char *text, size_t size) {
    size_t got = 0;
    while (from && got < size - 1) {
        size_t step = 4096 - (from + got) % 4096;
        if (step > size - 1 - got) step = size - 1 - got;
        struct iovec here = { text + got, step }, there = { (void *)(from + got), step };
        ssize_t n = process_vm_readv(pid, &here, 1, &there, 1, 0);
        if (n <= 0 || memchr(text + got, 0, n)) { got += n > 0 ? n : 0; break; }
        got += n;
    }
    text[got < size ? got : size - 1] = 0;
}

static int is_hex(const char *part, size_t length) {
    if (length > 2 && !strncmp(part + length - 2, ".p", 2)) length -= 2;
    if (length && *part == 'x') part++, length--;
    return length > 1 && strspn(part, "0123456789abcdef-") >= length;
}

/* The name of a call and the kind of its file. */
static void describe(const char *call, const char *path, char *what, size_t size) {
    size_t n = snprintf(what, size, "%s ", call);
    while (*path && n < size - 1) {
        size_t length = strcspn(path, "/");
        const char *kind = path;
        size_t shown = length;
        if (is_hex(path, length)) kind = "*", shown = 1;
        else if (!strncmp(path, "in-", 3)) kind = "in-*", shown = 4;
        else if (!strncmp(path, ".new-", 5)) kind = ".new-*", shown = 6;
        n += snprintf(what + n, size - n, "%.*s%s", (int)shown, kind, path[length] ? "/" : "");
        path += length + !!path[length];
    }
}

static int is_thread(int pid) {
    char file[64], name[32] = "";
    if (!control->thread[0]) return 1;
    snprintf(file, sizeof file, "/proc/%d/comm", pid);
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t n = read(fd, name, sizeof name - 1);
    close(fd);
    return n > 1 && (name[n - 1] = 0, !strncmp(name, control->thread, 15));
}

/* 0, or the errno that a call is to fail with. */
static int judge(const struct seccomp_notif *asked) {
    int mask = __atomic_load_n(&control->mask, __ATOMIC_SEQ_CST), pid = asked->pid;
    const struct call *call = calls;
    while (call < calls + CALLS && call->number != asked->data.nr) call++;
    if (call == calls + CALLS || !(mask & call->kind) || !is_thread(pid)) return 0;
    const unsigned long long *given = asked->data.args + call->argument;
    /* Of all that fcntl does, the taking of locks: a kernel never refuses to give one back. */
    if (call->number == SYS_fcntl) {
        struct flock lock = { .l_type = F_UNLCK };
        struct iovec here = { &lock, sizeof lock }, there = { (void *)asked->data.args[2], sizeof lock };
        if (asked->data.args[1] != F_SETLK && asked->data.args[1] != F_OFD_SETLK) return 0;
        if (process_vm_readv(pid, &here, 1, &there, 1, 0) != sizeof lock || lock.l_type == F_UNLCK) return 0;
    }
    char path[1024] = "", text[512] = "";
    if (call->how != FD) text_of(pid, given[call->how == AT], text, sizeof text);
    if (call->how != PATH && text[0] != '/') name_of(pid, (int)given[0], path, sizeof path - sizeof text - 1);
    if (text[0]) {
        if (text[0] != '/') strcat(path, "/");
        strcat(path, text);
    }
    if (strncmp(path, dir, strlen(dir))) return 0;
    if (control->sticky && control->hits) return control->hits++, control->error;
    char what[192] = "";
    describe(call->name, path + strlen(dir), what, sizeof what);
    if (control->only[0] && strcmp(control->only, what)) return 0;
    int n = __sync_add_and_fetch(&control->count, 1);
    if (n <= LOGGED) strcpy(control->log[n - 1], what);
    if (n != control->nth) return 0;
    strcpy(control->what, what);
    control->hits++;
    return control->error;
}

static void answer(int listener) {
    for (;;) {
        struct seccomp_notif asked = { 0 };
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked)) {
            if (errno == EINTR || errno == ENOENT) continue;
            _exit(0);
        }
        int error = judge(&asked);
        struct seccomp_notif_resp said = { .id = asked.id, .error = -error,
            .flags = error ? 0 : SECCOMP_USER_NOTIF_FLAG_CONTINUE };
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &said);
    }
}

static void refuse(const char *what) {
    perror(what);
    exit(75);
}

int main(int count, char **arguments) {
    if (count < 4) return 2;
    dir = arguments[2];
    int fd = open(arguments[1], O_RDWR | O_CLOEXEC);
    control = fd < 0 ? MAP_FAILED : mmap(NULL, SWITCH, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (control == MAP_FAILED) return 2;
    struct sock_filter filter[2 * CALLS + 8];
    int n = 0;
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < CALLS; i++) {
        filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].number, 0, 1);
        filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    }
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = { n, filter };
    /* The child shares the descriptors until the program begins, and so has the one it answers on. */
    volatile int *listener = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (listener == MAP_FAILED) return 2;
    *listener = -1;
    int parent = getpid(), child = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
    if (child < 0) return 2;
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (*listener == -1 && getppid() == parent) usleep(100);
        if (*listener < 0) _exit(0);
        /* Not one descriptor but that: whoever reads what the program says waits for its end alone. */
        int own = *listener;
        unshare(CLONE_FILES);
        for (int i = 0; i < 1024; i++) if (i != own) close(i);
        listener[1] = 1;
        answer(own);
    }
#ifdef PR_SET_PTRACER
    prctl(PR_SET_PTRACER, child);
#endif
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) refuse("no new privileges");
    int got = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (got < 0) refuse("seccomp");
    *listener = got;
    while (!listener[1]) usleep(100);
    close(got);
    execv(arguments[3], arguments + 3);
    perror(arguments[3]);
    return 2;
}
