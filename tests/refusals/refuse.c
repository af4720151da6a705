/* A file system that refuses: a test double for broken disks, quotas, lost NFS handles and access control,
 * which this machine cannot have on demand. Preloaded into a program (LD_PRELOAD) it lets an operation on a
 * path fail while a line of the file $REFUSE_RULES says so:
 *
 *     OPERATION PART-OF-THE-PATH ERRNO        OPERATION: open, read, write, sync, rename, unlink
 *
 * `create` is an open that may write. `clock now SECONDS` moves the wall clock, `clock boot SECONDS` the time since the
 * machine was started; `clock kept 1` has the kernel say that the wall clock is kept right, `clock loose 1` that it is not. Rules are looked up at every call, so a test can change them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The number of the first rule that is for this. */
static int rule(const char *operation, const char *path)
{
    const char *rules = getenv("REFUSE_RULES");
    char text[4096], *line, *rest = text;
    long fd, len;
    if (!rules || !path)
        return 0;
    fd = syscall(SYS_openat, AT_FDCWD, rules, O_RDONLY);
    if (fd < 0)
        return 0;
    len = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    if (len <= 0)
        return 0;
    text[len] = 0;
    while ((line = strsep(&rest, "\n"))) {
        char wanted[16], part[256];
        int number;
        if (sscanf(line, "%15s %255s %d", wanted, part, &number) == 3 && !strcmp(wanted, operation) &&
            strstr(path, part)) {
            return number;
        }
    }
    return 0;
}

static int refused(const char *operation, const char *path)
{
    int number = rule(operation, path);
    if (number)
        errno = number;
    return number != 0;
}

static int refused_fd(const char *operation, int fd)
{
    char link[64], path[4096];
    ssize_t len;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    len = readlink(link, path, sizeof path - 1);
    if (len <= 0 || path[0] != '/')
        return 0;
    path[len] = 0;
    return refused(operation, path);
}

static int open_at(int dir, const char *path, int flags, mode_t mode)
{
    if (refused((flags & O_ACCMODE) == O_RDONLY ? "open" : "create", path))
        return -1;
    return syscall(SYS_openat, dir, path, flags | O_LARGEFILE, mode);
}

#define MODE(flags)                                                                                            \
    mode_t mode = 0;                                                                                           \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                     \
        va_list list;                                                                                          \
        va_start(list, flags);                                                                                 \
        mode = va_arg(list, mode_t);                                                                           \
        va_end(list);                                                                                          \
    }

int open(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE(flags) return open_at(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE(flags) return open_at(dir, path, flags, mode); }

ssize_t read(int fd, void *to, size_t len) { return refused_fd("read", fd) ? -1 : syscall(SYS_read, fd, to, len); }
ssize_t pread64(int fd, void *to, size_t len, off64_t at)
{
    return refused_fd("read", fd) ? -1 : syscall(SYS_pread64, fd, to, len, at);
}
ssize_t write(int fd, const void *from, size_t len)
{
    return refused_fd("write", fd) ? -1 : syscall(SYS_write, fd, from, len);
}
ssize_t writev(int fd, const struct iovec *from, int count)
{
    return refused_fd("write", fd) ? -1 : syscall(SYS_writev, fd, from, count);
}
ssize_t pwrite64(int fd, const void *from, size_t len, off64_t at)
{
    return refused_fd("write", fd) ? -1 : syscall(SYS_pwrite64, fd, from, len, at);
}
int fsync(int fd) { return refused_fd("sync", fd) ? -1 : syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return refused_fd("sync", fd) ? -1 : syscall(SYS_fdatasync, fd); }
int rename(const char *from, const char *to)
{
    return refused("rename", to) ? -1 : syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int unlink(const char *path) { return refused("unlink", path) ? -1 : syscall(SYS_unlinkat, AT_FDCWD, path, 0); }
int clock_gettime(clockid_t id, struct timespec *now)
{
    int outcome = syscall(SYS_clock_gettime, id, now);
    if (outcome == 0 && id == CLOCK_REALTIME)
        now->tv_sec += rule("clock", "now");
    if (outcome == 0 && id == CLOCK_BOOTTIME)
        now->tv_sec += rule("clock", "boot");
    return outcome;
}

int adjtimex(struct timex *state)
{
    int outcome = syscall(SYS_adjtimex, state);
    if (rule("clock", "kept")) {
        state->status &= ~STA_UNSYNC;
        return TIME_OK;
    }
    if (rule("clock", "loose")) {
        state->status |= STA_UNSYNC;
        return TIME_ERROR;
    }
    return outcome;
}
