/* Interposes libc's file calls (LD_PRELOAD): counts those of the chosen kinds that touch a path
 * under a root, and at call number n kills the process or lets the call fail. Or records what the
 * calls that change the disk did there.
 *
 * Paths are compared as they are given, or as /proc/self/fd names them: links are not followed.
 * Writes through mmap, and those of stdio's own buffers, pass unseen.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { DATA = 1, NAMES = 2, SYNC = 4, READS = 8, LOOKS = 16, WRITING = 7 }; /* kinds, a mask */
enum { PASS, KILL_BEFORE, KILL_AFTER, KILL_TORN, FAIL, FAIL_ON, SHORT }; /* actions */

/* Shared with the parent, which reads it after the process was killed. */
struct report {
    atomic_long calls;  /* of the chosen kinds, so far */
    char struck[512];   /* the call that the fault struck, and its path; "" before */
};

static struct {
    char root[PATH_MAX];
    size_t length;
    int kinds, action, error;
    long n;
    struct report *report;
    atomic_int armed, log; /* `log` is where calls are recorded, or -1 */
} shim = {.log = -1};

void shim_disarm(void) { atomic_store(&shim.armed, 0), atomic_store(&shim.log, -1); }

static void set_root(const char *root) {
    shim_disarm();
    shim.length = (size_t)snprintf(shim.root, sizeof shim.root, "%s", root);
}

/* From now on, calls that change the disk under `root` are recorded in the file `log`. */
void shim_record(const char *root, int log) { set_root(root), atomic_store(&shim.log, log); }

/* From now on, call number n (from 1) of `kinds` under `root` meets `action`. */
void shim_arm(const char *root, int kinds, int action, int error, long n, struct report *report) {
    set_root(root);
    shim.kinds = kinds, shim.action = action, shim.error = error;
    shim.n = n, shim.report = report;
    atomic_store(&report->calls, 0);
    report->struck[0] = 0;
    atomic_store(&shim.armed, 1);
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Write to `full` (PATH_MAX) what a directory's descriptor and a path name, or a file's alone. */
static int resolve(int dir, const char *path, char *full) {
    char link[64] = "/proc/self/cwd";
    ssize_t length = 0;
    if (!path || path[0] != '/') {
        if (dir != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        length = syscall(SYS_readlink, link, full, PATH_MAX - 1);
        if (length <= 0) return 0;
        full[length] = 0;
    }
    if (path && path[0])
        snprintf(full + length, (size_t)(PATH_MAX - length), length ? "/%s" : "%s", path);
    return 1;
}

/* Write to `full` what is named, and tell whether it lies under the root. */
static int is_under_root(int dir, const char *path, char *full) {
    int saved = errno, found = resolve(dir, path, full);
    errno = saved;
    return found && !strncmp(full, shim.root, shim.length) &&
           (!full[shim.length] || full[shim.length] == '/');
}

/* Where calls are recorded, one that changes the disk is done and told before the next begins. */
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

static int hold(int kind) {
    return kind & WRITING && atomic_load(&shim.log) >= 0 && !pthread_mutex_lock(&order);
}

static void let_go(int held) {
    if (held) pthread_mutex_unlock(&order);
}

/* Record a call that was done: a line, and the `size` bytes at `at` that it wrote. The line has the
 * name of the call, both paths, mode and size of what the first path names now, offset and size. */
static void note(int held, const char *call, int dir, const char *path, int from_dir,
                 const char *from, off_t at, ssize_t size) {
    char full[PATH_MAX], other[PATH_MAX] = "", line[2 * PATH_MAX + 200];
    struct stat now = {0};
    int saved = errno, log = atomic_load(&shim.log);
    if (!held || log < 0 || !is_under_root(dir, path, full)) return;
    if (from) resolve(from_dir, from, other);
    lstat(full, &now);
    int length = snprintf(line, sizeof line, "%s\t%s\t%s\t%o\t%lld\t%lld\t%zd\n", call, full, other,
                          now.st_mode & 07777, (long long)now.st_size, (long long)at, size);
    syscall(SYS_write, log, line, length);
    if (size > 0) {
        snprintf(line, sizeof line, "/proc/self/fd/%d", dir);
        int written = (int)syscall(SYS_openat, AT_FDCWD, line, O_RDONLY);
        while (size > 0) {
            ssize_t copied = syscall(SYS_sendfile, log, written, &at, size);
            if (copied <= 0) die(); /* and no record with a hole */
            size -= copied;
        }
        syscall(SYS_close, written);
    }
    errno = saved;
}

/* Count a call, and say what it meets: PASS, KILL_AFTER, KILL_TORN, SHORT, or FAIL with errno. */
static int meets(int kind, const char *call, int dir, const char *path) {
    char full[PATH_MAX];
    if (!atomic_load(&shim.armed) || !(kind & shim.kinds)) return PASS;
    if (!is_under_root(dir, path, full)) return PASS;
    long number = atomic_fetch_add(&shim.report->calls, 1) + 1;
    if (number != shim.n && !(shim.action == FAIL_ON && number > shim.n)) return PASS;
    if (number == shim.n)
        snprintf(shim.report->struck, sizeof shim.report->struck, "%s %.480s", call, full);
    if (shim.action == KILL_BEFORE) die();
    if (shim.action == FAIL || shim.action == FAIL_ON) return errno = shim.error, FAIL;
    return shim.action;
}

#define REAL(type, name, params)      \
    static type(*real) params;        \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)

/* `from` is the other path of a call that has two. */
#define WRAP_FROM(type, name, failed, kind, dir, path, from_dir, from, params, args)     \
    type name params {                                                                   \
        REAL(type, name, params);                                                        \
        int met = meets(kind, #name, dir, path);                                         \
        if (met == FAIL) return failed;                                                  \
        int held = hold(kind);                                                           \
        type result = real args;                                                         \
        if (result != failed) note(held, #name, dir, path, from_dir, from, 0, 0);        \
        let_go(held);                                                                    \
        if (met == KILL_AFTER) die();                                                    \
        return result;                                                                   \
    }
#define WRAP(type, name, failed, kind, dir, path, params, args) \
    WRAP_FROM(type, name, failed, kind, dir, path, AT_FDCWD, NULL, params, args)

/* Calls that write at `offset`, which is looked at when they have: `half` cuts what is written, for
 * SHORT and, before the kill, KILL_TORN. */
#define WRAP_WRITE(name, fd, offset, half, params, args)              \
    ssize_t name params {                                             \
        REAL(ssize_t, name, params);                                  \
        int met = meets(DATA, #name, fd, NULL);                       \
        if (met == FAIL) return -1;                                   \
        struct iovec part __attribute__((unused));                    \
        if (met == SHORT || met == KILL_TORN) half;                   \
        int held = hold(DATA);                                        \
        ssize_t result = real args;                                   \
        if (result > 0) note(held, #name, fd, NULL, 0, NULL, offset, result); \
        let_go(held);                                                 \
        if (met == KILL_AFTER || met == KILL_TORN) die();             \
        return result;                                                \
    }
#define HERE(fd) (lseek(fd, 0, SEEK_CUR) - result)
#define HALF (size -= size / 2)
#define HALF_LIST (part = *list, part.iov_len -= part.iov_len / 2, list = &part, count = 1)

#define WRITES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & (O_CREAT | O_TRUNC)))
#define WRAP_OPEN(name, dir, params, ...)                                   \
    int name params {                                                       \
        static int (*real)();                                               \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);               \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                       \
        int met = meets(WRITES(flags) ? NAMES : READS, #name, dir, path);   \
        if (met == FAIL) return -1;                                         \
        int held = hold(WRITES(flags) ? NAMES : READS);                     \
        int result = real(__VA_ARGS__, flags, mode);                        \
        if (result >= 0) note(held, #name, dir, path, 0, NULL, 0, 0);       \
        let_go(held);                                                       \
        if (met == KILL_AFTER) die();                                       \
        return result;                                                      \
    }

#define WRAP_INT(name, kind, dir, path, params, args) \
    WRAP(int, name, -1, kind, dir, path, params, args)
#define WRAP_PAIR(name, from_dir, from, to_dir, to, params, args) \
    WRAP_FROM(int, name, -1, NAMES, to_dir, to, from_dir, from, params, args)
#define WRAP_READ(name, params, args) WRAP(ssize_t, name, -1, READS, fd, NULL, params, args)
#define BOTH(macro, name, ...) macro(name, __VA_ARGS__) macro(name##64, __VA_ARGS__)

BOTH(WRAP_OPEN, open, AT_FDCWD, (const char *path, int flags, ...), path)
BOTH(WRAP_OPEN, openat, dir, (int dir, const char *path, int flags, ...), dir, path)
BOTH(WRAP_INT, creat, NAMES, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
WRAP(FILE *, fopen, NULL, mode[0] == 'r' && !strchr(mode, '+') ? READS : NAMES, AT_FDCWD, path,
     (const char *path, const char *mode), (path, mode))
WRAP(FILE *, fopen64, NULL, mode[0] == 'r' && !strchr(mode, '+') ? READS : NAMES, AT_FDCWD, path,
     (const char *path, const char *mode), (path, mode))

WRAP_WRITE(write, fd, HERE(fd), HALF, (int fd, const void *data, size_t size), (fd, data, size))
BOTH(WRAP_WRITE, pwrite, fd, at, HALF, (int fd, const void *data, size_t size, off_t at),
     (fd, data, size, at))
WRAP_WRITE(writev, fd, HERE(fd), HALF_LIST, (int fd, const struct iovec *list, int count),
           (fd, list, count))
BOTH(WRAP_WRITE, pwritev, fd, at, HALF_LIST,
     (int fd, const struct iovec *list, int count, off_t at),
     (fd, list, count, at))
WRAP_WRITE(pwritev64v2, fd, at, HALF_LIST,
           (int fd, const struct iovec *list, int count, off_t at, int flags),
           (fd, list, count, at, flags))
BOTH(WRAP_WRITE, sendfile, fd, HERE(fd), HALF, (int fd, int from, off_t *at, size_t size),
     (fd, from, at, size))
WRAP_WRITE(copy_file_range, fd, at ? *at - result : HERE(fd), HALF,
           (int from, off_t *from_at, int fd, off_t *at, size_t size, unsigned flags),
           (from, from_at, fd, at, size, flags))

BOTH(WRAP_INT, ftruncate, NAMES, fd, NULL, (int fd, off_t size), (fd, size))
BOTH(WRAP_INT, truncate, NAMES, AT_FDCWD, path, (const char *path, off_t size), (path, size))
WRAP_PAIR(rename, AT_FDCWD, from, AT_FDCWD, to, (const char *from, const char *to), (from, to))
WRAP_PAIR(renameat, dir, from, to_dir, to, (int dir, const char *from, int to_dir, const char *to),
         (dir, from, to_dir, to))
WRAP_PAIR(renameat2, dir, from, to_dir, to,
         (int dir, const char *from, int to_dir, const char *to, unsigned flags),
         (dir, from, to_dir, to, flags))
WRAP_PAIR(link, AT_FDCWD, from, AT_FDCWD, to, (const char *from, const char *to), (from, to))
WRAP_PAIR(linkat, dir, from, to_dir, to,
         (int dir, const char *from, int to_dir, const char *to, int flags),
         (dir, from, to_dir, to, flags))
WRAP_INT(unlink, NAMES, AT_FDCWD, path, (const char *path), (path))
WRAP_INT(remove, NAMES, AT_FDCWD, path, (const char *path), (path))
WRAP_INT(unlinkat, NAMES, dir, path, (int dir, const char *path, int flags), (dir, path, flags))
WRAP_INT(mkdir, NAMES, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
WRAP_INT(mkdirat, NAMES, dir, path, (int dir, const char *path, mode_t mode), (dir, path, mode))
WRAP_INT(rmdir, NAMES, AT_FDCWD, path, (const char *path), (path))
WRAP_INT(chmod, NAMES, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
WRAP_INT(fchmod, NAMES, fd, NULL, (int fd, mode_t mode), (fd, mode))
WRAP_INT(fchown, NAMES, fd, NULL, (int fd, uid_t user, gid_t group), (fd, user, group))
WRAP_INT(fchmodat, NAMES, dir, path, (int dir, const char *path, mode_t mode, int flags),
         (dir, path, mode, flags))

WRAP_INT(fsync, SYNC, fd, NULL, (int fd), (fd))
WRAP_INT(fdatasync, SYNC, fd, NULL, (int fd), (fd))

/* A close that fails has closed all the same; only those of files being written count. */
int close(int fd) {
    REAL(int, close, (int fd));
    int saved = errno, flags = fcntl(fd, F_GETFL);
    errno = saved;
    int met = flags != -1 && WRITES(flags) ? meets(SYNC, "close", fd, NULL) : PASS;
    int error = errno, result = real(fd);
    if (met == KILL_AFTER) die();
    return met == FAIL ? (errno = error, -1) : result;
}

WRAP_READ(read, (int fd, void *data, size_t size), (fd, data, size))
BOTH(WRAP_READ, pread, (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
WRAP_READ(readv, (int fd, const struct iovec *list, int count), (fd, list, count))
BOTH(WRAP_READ, preadv, (int fd, const struct iovec *list, int count, off_t at),
     (fd, list, count, at))
WRAP_READ(preadv64v2, (int fd, const struct iovec *list, int count, off_t at, int flags),
          (fd, list, count, at, flags))
WRAP(void *, mmap, MAP_FAILED, READS, fd, NULL,
     (void *place, size_t size, int protection, int flags, int fd, off_t at),
     (place, size, protection, flags, fd, at))
WRAP(void *, mmap64, MAP_FAILED, READS, fd, NULL,
     (void *place, size_t size, int protection, int flags, int fd, off_t at),
     (place, size, protection, flags, fd, at))

WRAP(DIR *, opendir, NULL, LOOKS, AT_FDCWD, path, (const char *path), (path))
WRAP(DIR *, fdopendir, NULL, LOOKS, fd, NULL, (int fd), (fd))
WRAP(struct dirent *, readdir, NULL, LOOKS, dirfd(dir), NULL, (DIR *dir), (dir))
WRAP(struct dirent64 *, readdir64, NULL, LOOKS, dirfd(dir), NULL, (DIR *dir), (dir))
WRAP_INT(access, LOOKS, AT_FDCWD, path, (const char *path, int mode), (path, mode))
WRAP_INT(faccessat, LOOKS, dir, path, (int dir, const char *path, int mode, int flags),
         (dir, path, mode, flags))
WRAP_INT(stat, LOOKS, AT_FDCWD, path, (const char *path, struct stat *out), (path, out))
WRAP_INT(stat64, LOOKS, AT_FDCWD, path, (const char *path, struct stat64 *out), (path, out))
WRAP_INT(lstat, LOOKS, AT_FDCWD, path, (const char *path, struct stat *out), (path, out))
WRAP_INT(lstat64, LOOKS, AT_FDCWD, path, (const char *path, struct stat64 *out), (path, out))
WRAP_INT(fstat, LOOKS, fd, NULL, (int fd, struct stat *out), (fd, out))
WRAP_INT(fstat64, LOOKS, fd, NULL, (int fd, struct stat64 *out), (fd, out))
WRAP_INT(fstatat, LOOKS, dir, path, (int dir, const char *path, struct stat *out, int flags),
         (dir, path, out, flags))
WRAP_INT(fstatat64, LOOKS, dir, path, (int dir, const char *path, struct stat64 *out, int flags),
         (dir, path, out, flags))
WRAP_INT(statx, LOOKS, dir, path,
         (int dir, const char *path, int flags, unsigned mask, struct statx *out),
         (dir, path, flags, mask, out))
WRAP_INT(__fxstat, LOOKS, fd, NULL, (int version, int fd, struct stat *out), (version, fd, out))
WRAP_INT(__fxstat64, LOOKS, fd, NULL, (int version, int fd, struct stat64 *out),
         (version, fd, out))
WRAP_INT(__xstat, LOOKS, AT_FDCWD, path, (int version, const char *path, struct stat *out),
         (version, path, out))
WRAP_INT(__xstat64, LOOKS, AT_FDCWD, path, (int version, const char *path, struct stat64 *out),
         (version, path, out))
