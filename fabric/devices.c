/* Names of network devices, tested before UCX sees them: it passes over unknown ones in silence. And the IP addresses of RDMA
 * devices, by which librdmacm finds them: on Ethernet in the device's table of GIDs, on InfiniBand on its IPoIB interface. */
#include "fabric/devices.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define RDMA_DIRECTORY "/sys/class/infiniband"
#define GIDS_MAX 256 /* entries of a port's table that are looked at */

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

/* ------------------------------------------------------------------------------------------------ addresses of RDMA devices */
static bool read_line(const char *path, char *line, int size)
{
    FILE *f = fopen(path, "re");
    bool there = f && fgets(line, size, f);
    if (f)
        fclose(f);
    if (there)
        line[strcspn(line, "\n")] = 0;
    return there;
}

/* An entry of the table as an IP address. False: it is empty, or of RoCE's first version, which has no IP. */
static bool gid_address(const char *port, unsigned index, struct sockaddr_storage *out)
{
    char path[256], text[64];
    struct in6_addr gid;
    snprintf(path, sizeof path, "%s/gid_attrs/types/%u", port, index);
    if (!read_line(path, text, sizeof text) || !strstr(text, "v2"))
        return false;
    snprintf(path, sizeof path, "%s/gids/%u", port, index);
    if (!read_line(path, text, sizeof text) || inet_pton(AF_INET6, text, &gid) != 1 || IN6_IS_ADDR_UNSPECIFIED(&gid))
        return false;
    memset(out, 0, sizeof *out);
    if (IN6_IS_ADDR_V4MAPPED(&gid)) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)out;
        v4->sin_family = AF_INET;
        memcpy(&v4->sin_addr, gid.s6_addr + 12, 4);
    } else {
        struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
        v6->sin6_family = AF_INET6;
        v6->sin6_addr = gid;
    }
    return true;
}

/* Of all entries an IPv4 address, as UCX prefers them too, else an IPv6 address that is valid beyond the link. */
static bool roce_address(const char *port, const char *gid, struct sockaddr_storage *out)
{
    char *end;
    unsigned long index = strtoul(gid, &end, 10);
    if (*gid && strcmp(gid, "auto") != 0)
        return *end == 0 && index < GIDS_MAX && gid_address(port, (unsigned)index, out);
    struct sockaddr_storage at;
    bool found = false;
    for (unsigned i = 0; i < GIDS_MAX; i++) {
        if (!gid_address(port, i, &at))
            continue;
        if (at.ss_family == AF_INET) {
            *out = at;
            return true;
        }
        if (!found && !IN6_IS_ADDR_LINKLOCAL(&((struct sockaddr_in6 *)&at)->sin6_addr)) {
            *out = at;
            found = true;
        }
    }
    return found;
}

/* InfiniBand: an IPv4 address of an interface of the device. */
static bool ipoib_address(const char *device, struct sockaddr_storage *out)
{
    char path[512];
    struct ifaddrs *all;
    struct stat st;
    bool found = false;
    if (getifaddrs(&all) != 0)
        return false;
    for (struct ifaddrs *i = all; i && !found; i = i->ifa_next) {
        snprintf(path, sizeof path, RDMA_DIRECTORY "/%s/device/net/%s", device, i->ifa_name);
        found = i->ifa_addr && i->ifa_addr->sa_family == AF_INET && stat(path, &st) == 0;
        if (found) {
            memset(out, 0, sizeof *out);
            memcpy(out, i->ifa_addr, sizeof(struct sockaddr_in));
        }
    }
    freeifaddrs(all);
    return found;
}

/* The address of one device: "mlx5_0:1", or without a port its first. */
static bool device_address(const char *name, size_t length, const char *gid, struct sockaddr_storage *out)
{
    char device[64], port[128], text[64];
    size_t bare = strcspn(name, ":");
    bare = bare < length ? bare : length;
    int number = bare + 1 < length ? (int)strtoul(name + bare + 1, NULL, 10) : 1;
    snprintf(device, sizeof device, "%.*s", (int)bare, name);
    snprintf(port, sizeof port, RDMA_DIRECTORY "/%s/ports/%d", device, number);
    char path[256];
    snprintf(path, sizeof path, "%s/link_layer", port);
    bool ethernet = read_line(path, text, sizeof text) && strcmp(text, "Ethernet") == 0;
    return ethernet ? roce_address(port, gid, out) : ipoib_address(device, out);
}

/* The address of the first device that has one, of those named or of all. */
static bool rdma_address(const char *devices, const char *gid, struct sockaddr_storage *out)
{
    bool found = false;
    if (strcmp(devices, "all") != 0) {
        for (const char *at = devices; *at && !found;) {
            size_t length = strcspn(at, ",");
            found = rdma_device(at, length) && device_address(at, length, gid, out);
            at += length;
            at += *at == ',';
        }
        return found;
    }
    DIR *directory = opendir(RDMA_DIRECTORY);
    for (struct dirent *entry; directory && !found && (entry = readdir(directory));)
        found = entry->d_name[0] != '.' && device_address(entry->d_name, strlen(entry->d_name), gid, out);
    if (directory)
        closedir(directory);
    return found;
}

/* ------------------------------------------------------------------------------------------------ the choice */
static enum kvf_status need_rdma(const char *interface, const char *gid, const struct kvf_log *log,
                                 const struct kvf_devices_choice *choice, bool reachable)
{
    if (!choice->rdma)
        kvf_log_error(log, "fabric.transport = rdma, but fabric.interface = %s has no RDMA device", interface);
    else if (!reachable)
        kvf_log_error(log, "fabric.interface = %s, fabric.gid = %s: no RDMA device has an IP address there; peers are found by one",
                      interface, gid);
    return choice->rdma && reachable ? KVF_OK : KVF_ERR_CONFIG;
}

enum kvf_status kvf_devices_choose(const char *kind, const char *interface, const char *gid, const struct kvf_log *log,
                                   struct kvf_devices_choice *out)
{
    struct kvf_devices_choice choice = {.tcp = true};
    enum kvf_status st = choose_devices(interface, log, &choice);
    if (st != KVF_OK)
        return st;
    const char *transports = "tcp,self";
    snprintf(choice.gid_index, sizeof choice.gid_index, "%.7s", gid && *gid ? gid : "auto");
    bool reachable = choice.rdma && rdma_address(choice.devices, choice.gid_index, &choice.rdma_at);
    if (strcmp(kind, "tcp") == 0) {
        choice.rdma = false;
    } else if (strcmp(kind, "shm") == 0) {
        choice.shm = true;
        choice.rdma = false;
    } else if (strcmp(kind, "auto") == 0) {
        choice.shm = true;
        if (choice.rdma && !reachable)
            kvf_log_info(log, "RDMA is not used: no device of fabric.interface = %s has an IP address", interface);
        choice.rdma = reachable;
        transports = choice.rdma ? "\\rc_verbs,\\rc_mlx5,tcp,self" : "tcp,self";
    } else if (strcmp(kind, "rdma") == 0) {
        st = need_rdma(interface, choice.gid_index, log, &choice, reachable);
        if (st != KVF_OK)
            return st;
        choice.shm = true;
        choice.tcp = false;
        transports = "\\rc_verbs,\\rc_mlx5,self"; /* without tcp: a site that asks for RDMA wants to know when it is not used */
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
