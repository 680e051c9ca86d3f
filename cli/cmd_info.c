/* kvf info: what this build and this machine can do, and why not. */
#include "cli/cli.h"
#include "cli/table.h"
#include "fabric/transport.h"
#include "kernels/dev.h"
#include "node/internal.h"
#include "tiers/disk.h"
#include "tiers/pages.h"

#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

static void line(const char *name, const char *text)
{
    /* Texts of libraries may have several lines: the rest is set under the first. */
    while (*text) {
        int length = (int)strcspn(text, "\n");
        printf("  %-14s %.*s\n", name, length, text);
        text += length + (text[length] == '\n');
        name = "";
    }
}

static void print_build(void)
{
    printf("build\n");
    line("version", kvf_version());
    line("compiler", __VERSION__);
#ifdef __SANITIZE_ADDRESS__
    line("sanitizer", "address");
#endif
}

static void print_compute(void)
{
    char text[512] = "";
    const char *why = NULL;
    for (const struct kvf_dev *const *dev = kvf_dev_cpu_all(); *dev; dev++) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%s%s", used ? ", " : "", (*dev)->name);
    }
    printf("compute\n");
    line("cpu kernels", kvf_dev_cpu()->name);
    line("runnable", text);
    const struct kvf_dev *gpu = kvf_dev_cuda(0, &why);
    if (!gpu) {
        snprintf(text, sizeof text, "not usable: %s", why ? why : "unknown");
        line("gpu", text);
    }
    for (int i = 0; gpu; gpu = kvf_dev_cuda(++i, NULL)) {
        snprintf(text, sizeof text, "%s, %s", gpu->name, kvf_table_bytes(gpu->memory_bytes).s);
        line(i ? "" : "gpu", text);
    }
}

static void memory_info(const char *key, char *value, size_t size)
{
    char text[128];
    FILE *file = fopen("/proc/meminfo", "re");
    snprintf(value, size, "unknown");
    while (file && fgets(text, sizeof text, file)) {
        unsigned long number;
        if (strncmp(text, key, strlen(key)) || sscanf(text + strlen(key), ": %lu", &number) != 1)
            continue;
        if (strstr(text, "kB"))
            snprintf(value, size, "%s", kvf_table_bytes((uint64_t)number * 1024).s);
        else
            snprintf(value, size, "%lu", number);
        break;
    }
    if (file)
        fclose(file);
}

static void read_line(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "re");
    snprintf(text, size, "unknown");
    if (file && fgets(text, (int)size, file))
        text[strcspn(text, "\n")] = 0;
    if (file)
        fclose(file);
}

static void print_memory(const struct kvf_settings *settings)
{
    char total[48], available[48], huge[48], text[320], thp[96];
    struct rlimit lock;
    memory_info("MemTotal", total, sizeof total);
    memory_info("MemAvailable", available, sizeof available);
    memory_info("HugePages_Total", huge, sizeof huge);
    printf("memory\n");
    snprintf(text, sizeof text, "%s, %s available", total, available);
    line("ram", text);
    read_line("/sys/kernel/mm/transparent_hugepage/enabled", thp, sizeof thp);
    snprintf(text, sizeof text, "%s reserved; transparent: %s", huge, thp);
    line("huge pages", text);
    if (!getrlimit(RLIMIT_MEMLOCK, &lock)) {
        if (lock.rlim_cur == RLIM_INFINITY)
            snprintf(text, sizeof text, "unlimited");
        else
            snprintf(text, sizeof text, "%s (root is exempt); RDMA and registered buffers need more than the arena",
                     kvf_table_bytes(lock.rlim_cur).s);
        line("memlock", text);
    }
    struct kvf_pages pages;
    if (kvf_pages_init(&pages, settings->memory_huge, settings->memory_numa, settings->fabric_interface,
                       (unsigned)settings->memory_threads, "/sys") == KVF_OK)
        line("numa", pages.numa_text);
    else
        line("numa", "memory.numa is neither auto, off, interleave nor a list of nodes that have memory");
}

static void print_disk(const struct kvf_settings *settings)
{
    char why[256] = "", text[512];
    struct statvfs about;
    bool usable = kvf_disk_uring_usable(why, sizeof why);
    printf("ssd tier\n");
    snprintf(text, sizeof text, "%s%s%s", usable ? "usable" : "not usable: ", !usable || !*why ? "" : ", ", why);
    line("io_uring", text);
    line("posix", "usable");
    if (!*settings->ssd_path)
        snprintf(text, sizeof text, "no SSD tier: ssd.path is empty");
    else if (statvfs(settings->ssd_path, &about))
        snprintf(text, sizeof text, "%.300s: not there", settings->ssd_path);
    else
        snprintf(text, sizeof text, "%.300s: %s free, %s wanted", settings->ssd_path,
                 kvf_table_bytes((uint64_t)about.f_bavail * about.f_frsize).s, kvf_table_bytes(settings->ssd_bytes).s);
    line("ssd.path", text);
}

static void print_devices(const struct kvf_settings *settings)
{
    char text[2048] = "";
    struct utsname system;
    if (!uname(&system)) {
        printf("machine\n");
        snprintf(text, sizeof text, "%s %s, %ld processors", system.release, system.machine, sysconf(_SC_NPROCESSORS_ONLN));
        line("kernel", text);
    }
    print_compute();
    print_memory(settings);
    printf("remote tier\n");
    text[0] = 0;
    kvf_transport_ucx_about(text, sizeof text);
    line("ucx", *text ? text : "unknown");
    line("transport", settings->fabric_transport);
    print_disk(settings);
}

static void print_sizes(void)
{
    struct kvf_table *table = kvf_table_create("STRUCT|>BYTES|ONE PER");
#define ROW(type, per) kvf_table_cell(table, #type), kvf_table_cell(table, "%zu", sizeof(struct type)), kvf_table_cell(table, per)
    ROW(kvf_entry, "block of the index");
    ROW(kvf_stage, "cold block in staging");
    ROW(kvf_read, "read under way");
    ROW(kvf_sess, "session, without its arrays");
    ROW(kvf_model, "model");
    ROW(kvf_node_peer, "peer");
    ROW(kvf_histogram, "latency that is measured");
    ROW(kvf_counters, "node");
    ROW(kvf_settings, "node");
    ROW(kvf_core, "node");
    ROW(kvf_request, "block request");
    ROW(kvf_completion, "block request");
    ROW(kvf_member, "member known from etcd");
    ROW(kvf_placement, "session known from etcd");
#undef ROW
    for (const struct kvf_fabric_size *size = kvf_fabric_sizes(); size->name; size++) {
        kvf_table_cell(table, "%s", size->name);
        kvf_table_cell(table, "%zu", size->bytes);
        kvf_table_cell(table, "%s", size->per);
    }
    size_t link_bytes, operation_bytes;
    kvf_transport_ucx_sizes(&link_bytes, &operation_bytes);
    kvf_table_cell(table, "kvf_link");
    kvf_table_cell(table, "%zu", link_bytes);
    kvf_table_cell(table, "link to a peer, two a peer and eight, beside UCX's own");
    kvf_table_cell(table, "op");
    kvf_table_cell(table, "%zu", operation_bytes);
    kvf_table_cell(table, "send or read that UCX has");
    printf("structs\n");
    kvf_table_print(table, stdout, "  ");
    kvf_table_destroy(table);
}

int kvf_cmd_info(struct kvf_cli *cli)
{
    const char *flags = *cli->flags ? cli->flags : "bd";
    if (strchr(flags, 'p') || cli->n_args)
        return !strcmp(flags, "p") && cli->n_args
                   ? kvf_cmd_peer(cli)
                   : kvf_cli_fail(cli, KVF_EXIT_USAGE, "-p wants the name of a node, and no other flag");
    if (cli->json)
        return kvf_cli_fail(cli, KVF_EXIT_USAGE, "--json is for -p");
    if (strchr(flags, 'b'))
        print_build();
    if (strchr(flags, 'd'))
        print_devices(kvf_config_settings(cli->config));
    if (strchr(flags, 't'))
        print_sizes();
    if (strchr(flags, 'c'))
        kvf_config_dump(cli->config, stdout); /* a failed write shows when standard output is flushed */
    return KVF_EXIT_DONE;
}
