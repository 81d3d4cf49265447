/* Tries to get out of where it runs. Answers each request with one line an attempt. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char out[65536];
static size_t length;

static void tell(const char *name, int reached)
{
    int n = snprintf(out + length, sizeof out - length, "%s %s\n", name, reached ? "REACHED" : strerror(errno));
    if (n > 0 && length + (size_t)n < sizeof out)
        length += (size_t)n;
}

static const char *env(const char *name)
{
    const char *value = getenv(name);
    return value != NULL ? value : "";
}

static int tcp(const char *host, const char *port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    inet_pton(AF_INET, host, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), error = 0;
    socklen_t size = sizeof error;
    if (fd < 0)
        return 0;
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno == EINPROGRESS) {
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        if (poll(&wait, 1, 1500) <= 0)
            error = ETIMEDOUT;
        else
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    } else {
        error = errno;
    }
    close(fd);
    errno = error;
    return error == 0;
}

/* Through the directory, because socket addresses are short. */
static int local(const char *dir, const char *name)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int at = open(dir, O_PATH | O_DIRECTORY), error;
    if (at < 0)
        return 0;
    snprintf(to.sun_path, sizeof to.sun_path, "/proc/self/fd/%d/%s", at, name);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    int reached = fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0;
    error = errno;
    close(fd);
    close(at);
    errno = error;
    return reached;
}

static int readable(const char *prefix, const char *dir, const char *name)
{
    char path[8192];
    snprintf(path, sizeof path, "%s%s%s", prefix, dir, name);
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return 0;
    close(fd);
    return 1;
}

static int writable(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT, 0644);
    if (fd < 0)
        return 0;
    close(fd);
    return 1;
}

/* Whether any process in sight was started by somebody else's command line. */
static int sees(const char *word)
{
    DIR *all = opendir("/proc");
    struct dirent *one;
    int found = 0;
    if (all == NULL)
        return 0;
    while (!found && (one = readdir(all)) != NULL) {
        char path[512], line[4096] = {0};
        if (one->d_name[0] < '0' || one->d_name[0] > '9')
            continue;
        snprintf(path, sizeof path, "/proc/%s/cmdline", one->d_name);
        int fd = open(path, O_RDONLY);
        if (fd < 0)
            continue;
        ssize_t n = read(fd, line, sizeof line - 1);
        close(fd);
        for (ssize_t i = 0; i < n; i++)
            if (line[i] == 0)
                line[i] = ' ';
        found = n > 0 && strstr(line, word) != NULL;
    }
    closedir(all);
    errno = ENOENT;
    return found;
}

/* What would change the machine is tried inside alone. */
static void attempts(int inside)
{
    const char *data = env("PROBE_DATA");
    pid_t server = (pid_t)atoi(env("PROBE_SERVER"));
    length = 0;
    tell("control-api", tcp("127.0.0.1", env("PROBE_CONTROL")));
    tell("front", tcp("127.0.0.1", env("PROBE_FRONT")));
    tell("outside", tcp("1.1.1.1", "53"));
    tell("link-local", tcp("169.254.169.254", "80"));
    tell("data-directory", readable("", data, ""));
    tell("database", readable("", data, "/adamant.db"));
    tell("keys", readable("", data, "/keys"));
    tell("trust", readable("", data, "/trust.json"));
    tell("root-of-1", readable("/proc/1/root", data, "/adamant.db"));
    tell("cwd-of-1", readable("/proc/1/cwd", data, "/adamant.db"));
    char run[8192];
    snprintf(run, sizeof run, "%s/run", data);
    tell("control-socket", local(run, "control.sock"));
    tell("sibling", local(env("PROBE_SIBLING"), "instance.sock"));
    tell("own-supervisor", local(env("PROBE_SIBLING"), "control.sock"));
    tell("signal-server", server > 1 && kill(server, 0) == 0);
    tell("see-server", sees("adamant up"));
    tell("passwd-of-host", readable("", "/etc/shadow", ""));
    if (!inside)
        return;
    tell("write-root", writable("/owned"));
    tell("write-app", writable("/app/owned"));
    tell("kernel-setting", writable("/proc/sys/kernel/core_pattern"));
    tell("mount", mount("none", "/tmp", "tmpfs", 0, NULL) == 0);
    tell("namespace", unshare(CLONE_NEWUSER) == 0);
    tell("network-namespace", unshare(CLONE_NEWNET) == 0);
    tell("trace-1", ptrace(PTRACE_ATTACH, 1, NULL, NULL) == 0);
    tell("become-root", geteuid() != 0 && setuid(0) == 0);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        attempts(0);
        return fwrite(out, 1, length, stdout) == length ? 0 : 1;
    }
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(8080)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    signal(SIGPIPE, SIG_IGN);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 64) < 0)
        return 1;
    for (;;) {
        char request[4096] = {0};
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        if (read(fd, request, sizeof request - 1) > 0) {
            length = 0;
            if (strncmp(request, "GET /probe", 10) == 0)
                attempts(1);
            dprintf(fd, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", length);
            if (write(fd, out, length) < 0)
                continue;
        }
        close(fd);
    }
}
