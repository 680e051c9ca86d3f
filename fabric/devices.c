/* Names of network devices, tested before UCX sees them: it passes over unknown ones in silence. */
#include "fabric/devices.h"

#include <dirent.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define RDMA_DIRECTORY "/sys/class/infiniband"

/* "mlx5_0:1" is port 1 of mlx5_0. */
static bool rdma_device(const char *name, size_t length)
{
    char path[128];
    struct stat st;
    size_t bare = strcspn(name, ":");
    bare = bare < length ? bare : length;
    if (bare == 0)
        return false;
    snprintf(path, sizeof path, RDMA_DIRECTORY "/%.*s", (int)bare, name);
    return stat(path, &st) == 0;
}

bool kvf_devices_any_rdma(void)
{
    DIR *directory = opendir(RDMA_DIRECTORY);
    bool found = false;
    if (!directory)
        return false;
    for (struct dirent *entry; !found && (entry = readdir(directory));)
        found = entry->d_name[0] != '.';
    closedir(directory);
    return found;
}

static void log_devices(const struct kvf_log *log, const char *name, size_t length)
{
    char list[512] = "";
    struct if_nameindex *all = if_nameindex();
    for (struct if_nameindex *i = all; i && i->if_index != 0; i++) {
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "", i->if_name);
    }
    if (all)
        if_freenameindex(all);
    kvf_log_error(log, "fabric.interface: there is no network device '%.*s'; there are %s%s", (int)length, name, list,
                  kvf_devices_any_rdma() ? " and those of " RDMA_DIRECTORY : "");
}

/* The kernel would send over it now. */
static bool runs(const char *name)
{
    struct ifreq request = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    bool up = fd >= 0 && ioctl(fd, SIOCGIFFLAGS, &request) == 0;
    if (fd >= 0)
        close(fd);
    return up && (request.ifr_flags & (IFF_UP | IFF_RUNNING)) == (IFF_UP | IFF_RUNNING);
}

bool kvf_devices_run(const struct kvf_devices_choice *choice)
{
    if (strcmp(choice->devices, "all") == 0)
        return true;
    for (const char *at = choice->devices; *at;) {
        size_t length = strcspn(at, ",");
        char name[IF_NAMESIZE] = "";
        if (length < sizeof name)
            memcpy(name, at, length);
        if (rdma_device(at, length) || runs(name))
            return true;
        at += length;
        at += *at == ',';
    }
    return false;
}

static enum kvf_status choose_devices(const char *interface, const struct kvf_log *log, struct kvf_devices_choice *out)
{
    if (!*interface || strcmp(interface, "all") == 0) {
        snprintf(out->devices, sizeof out->devices, "all");
        out->rdma = kvf_devices_any_rdma();
        return KVF_OK;
    }
    if (strlen(interface) >= sizeof out->devices) {
        kvf_log_error(log, "fabric.interface is longer than %zu characters", sizeof out->devices - 1);
        return KVF_ERR_CONFIG;
    }
    for (const char *at = interface; *at;) {
        size_t length = strcspn(at, ",");
        char name[IF_NAMESIZE] = "";
        if (length < sizeof name)
            memcpy(name, at, length);
        if (rdma_device(at, length)) {
            out->rdma = true;
        } else if (!*name || if_nametoindex(name) == 0) {
            log_devices(log, at, length);
            return KVF_ERR_CONFIG;
        }
        at += length;
        at += *at == ',';
    }
    snprintf(out->devices, sizeof out->devices, "%s", interface);
    return KVF_OK;
}

static bool is_loopback(const struct ifaddrs *all, const char *name, size_t length)
{
    for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
        if (strlen(i->ifa_name) == length && memcmp(i->ifa_name, name, length) == 0)
            return i->ifa_flags & IFF_LOOPBACK;
    }
    return false;
}

enum kvf_status kvf_devices_loopback(const char *devices, const struct kvf_log *log)
{
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all) != 0)
        all = NULL; /* then none is known to be loopback */
    size_t length = 0;
    const char *at = devices;
    bool loopback = *at != 0;
    while (loopback && *at) {
        length = strcspn(at, ",");
        loopback = is_loopback(all, at, length);
        if (loopback)
            at += length + (at[length] == ',');
    }
    if (all)
        freeifaddrs(all);
    if (loopback)
        return KVF_OK;
    kvf_log_error(log, "fabric.interface: '%.*s' is more than loopback, and a node without a secret listens there only; set "
                  "cluster.secret_file", (int)length, at);
    return KVF_ERR_CONFIG;
}

enum kvf_status kvf_devices_choose(const char *kind, const char *interface, const struct kvf_log *log,
                                   struct kvf_devices_choice *out)
{
    struct kvf_devices_choice choice = {.rdma = false};
    enum kvf_status st = choose_devices(interface, log, &choice);
    if (st != KVF_OK)
        return st;
    const char *transports;
    if (strcmp(kind, "tcp") == 0) {
        choice.rdma = false;
        transports = "tcp,self";
    } else if (strcmp(kind, "shm") == 0) {
        choice.shm = true;
        choice.rdma = false;
        transports = "tcp,self";
    } else if (strcmp(kind, "auto") == 0) {
        choice.shm = true;
        transports = choice.rdma ? "rc,ud,tcp,self" : "tcp,self";
    } else if (strcmp(kind, "rdma") == 0) {
        if (!choice.rdma) {
            kvf_log_error(log, "fabric.transport = rdma, but fabric.interface = %s has no RDMA device", interface);
            return KVF_ERR_CONFIG;
        }
        choice.shm = true;
        transports = "rc,ud,self"; /* without tcp: a site that asks for RDMA wants to know when it is not used */
    } else {
        kvf_log_error(log, "fabric.transport = %s is not one of auto, tcp, shm, rdma", kind);
        return KVF_ERR_CONFIG;
    }
    if (!kvf_devices_run(&choice)) { /* UCX would leave it out in silence, now and for good */
        kvf_log_error(log, "fabric.interface = %s is down or has no carrier", interface);
        return KVF_ERR_CONFIG;
    }
    snprintf(choice.transports, sizeof choice.transports, "%s", transports);
    *out = choice;
    return KVF_OK;
}
