/* The secrets of secret.h. */
#include "fabric/secret.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_BYTES_MAX (KVF_SECRET_COUNT * (KVF_SECRET_BYTES_MAX + 1))
#define ID_LABEL "kvfabric key id"

struct one {
    size_t bytes;
    uint8_t text[KVF_SECRET_BYTES_MAX];
    uint8_t id[KVF_SECRET_ID_BYTES];
};

struct set {
    unsigned n; /* 0: none */
    struct one one[KVF_SECRET_COUNT];
};

struct kvf_secret {
    struct set set;
    struct set next;              /* while it is read */
    char file[FILE_BYTES_MAX + 1]; /* likewise: one byte more, so that a longer file shows */
    /* The file as it was when it was last read. */
    dev_t device;
    ino_t inode;
    off_t size;
    struct timespec changed;
};

/* ------------------------------------------------------------------------------------------------ memory */
static size_t pages(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

void *kvf_secret_alloc(size_t bytes)
{
    assert(bytes > 0);
    void *memory = mmap(NULL, pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    madvise(memory, pages(bytes), MADV_DONTDUMP);
    madvise(memory, pages(bytes), MADV_WIPEONFORK);
    if (mlock(memory, pages(bytes)) != 0) {
        /* A limit on locked memory must not keep a node from starting: swap is the site's to encrypt then. */
    }
    return memory;
}

void kvf_secret_free(void *memory, size_t bytes)
{
    if (!memory)
        return;
    OPENSSL_cleanse(memory, bytes);
    munmap(memory, pages(bytes));
}

enum kvf_status kvf_secret_create(struct kvf_secret **out)
{
    struct kvf_secret *secret = kvf_secret_alloc(sizeof *secret);
    if (!secret)
        return KVF_ERR_NO_MEMORY;
    *out = secret;
    return KVF_OK;
}

void kvf_secret_destroy(struct kvf_secret *secret)
{
    kvf_secret_free(secret, sizeof *secret);
}

/* ------------------------------------------------------------------------------------------------ use */
static bool mac_with(const void *key, size_t key_bytes, const void *data, size_t bytes, uint8_t mac[KVF_SECRET_MAC_BYTES])
{
    unsigned length = KVF_SECRET_MAC_BYTES;
    return HMAC(EVP_sha256(), key, (int)key_bytes, data, bytes, mac, &length) && length == KVF_SECRET_MAC_BYTES;
}

static const struct one *find(const struct kvf_secret *secret, const uint8_t id[KVF_SECRET_ID_BYTES])
{
    for (unsigned i = 0; i < secret->set.n; i++) {
        if (memcmp(secret->set.one[i].id, id, KVF_SECRET_ID_BYTES) == 0)
            return &secret->set.one[i];
    }
    return NULL;
}

static bool is_empty_id(const uint8_t id[KVF_SECRET_ID_BYTES])
{
    static const uint8_t none[KVF_SECRET_ID_BYTES];
    return memcmp(id, none, sizeof none) == 0;
}

bool kvf_secret_present(const struct kvf_secret *secret)
{
    return secret && secret->set.n > 0;
}

void kvf_secret_id(const struct kvf_secret *secret, uint8_t id[KVF_SECRET_ID_BYTES])
{
    memset(id, 0, KVF_SECRET_ID_BYTES);
    if (kvf_secret_present(secret))
        memcpy(id, secret->set.one[0].id, KVF_SECRET_ID_BYTES);
}

bool kvf_secret_accepts(const struct kvf_secret *secret, const uint8_t id[KVF_SECRET_ID_BYTES])
{
    return kvf_secret_present(secret) ? find(secret, id) != NULL : is_empty_id(id);
}

bool kvf_secret_mac(const struct kvf_secret *secret, const uint8_t id[KVF_SECRET_ID_BYTES], const void *data, size_t bytes,
                    uint8_t mac[KVF_SECRET_MAC_BYTES])
{
    assert(data && bytes > 0);
    if (!kvf_secret_present(secret))
        return is_empty_id(id) && mac_with("", 0, data, bytes, mac);
    const struct one *one = find(secret, id);
    return one && mac_with(one->text, one->bytes, data, bytes, mac);
}

/* ------------------------------------------------------------------------------------------------ reading */
/* One line into `one`; what is wrong with it, or NULL. */
static const char *take_line(const char *text, size_t bytes, struct one *one)
{
    if (bytes < KVF_SECRET_BYTES_MIN)
        return "a secret has fewer than 32 characters";
    if (bytes > KVF_SECRET_BYTES_MAX)
        return "a secret has more than 256 characters";
    for (size_t i = 0; i < bytes; i++) {
        if ((unsigned char)text[i] <= 0x20 || (unsigned char)text[i] >= 0x7f)
            return "a secret holds white space or a character that is not printable ASCII";
    }
    memcpy(one->text, text, bytes);
    one->bytes = bytes;
    uint8_t mac[KVF_SECRET_MAC_BYTES];
    if (!mac_with(one->text, one->bytes, ID_LABEL, strlen(ID_LABEL), mac))
        return "OpenSSL offers no HMAC-SHA-256";
    memcpy(one->id, mac, sizeof one->id);
    one->id[0] |= 1; /* all zeros are the id of no secret */
    return NULL;
}

enum kvf_status kvf_secret_set(struct kvf_secret *secret, const char *text, size_t bytes, const char **why)
{
    struct set *next = &secret->next;
    *why = NULL;
    next->n = 0;
    for (size_t at = 0; at < bytes && !*why;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        size_t length = end ? (size_t)(end - text) - at : bytes - at;
        if (next->n == KVF_SECRET_COUNT)
            *why = "there are more than two lines";
        else
            *why = take_line(text + at, length, &next->one[next->n++]);
        at += length + 1;
    }
    if (!*why && next->n == 0)
        *why = "there is no secret in it";
    if (!*why)
        secret->set = *next;
    OPENSSL_cleanse(next, sizeof *next);
    return *why ? KVF_ERR_CONFIG : KVF_OK;
}

static void note_file(struct kvf_secret *secret, const struct stat *st)
{
    secret->device = st->st_dev;
    secret->inode = st->st_ino;
    secret->size = st->st_size;
    secret->changed = st->st_ctim;
}

bool kvf_secret_changed(const struct kvf_secret *secret, const char *path)
{
    struct stat st = {0}; /* one that is gone is all zeros */
    if (stat(path, &st) != 0)
        memset(&st, 0, sizeof st);
    return st.st_dev != secret->device || st.st_ino != secret->inode || st.st_size != secret->size ||
           st.st_ctim.tv_sec != secret->changed.tv_sec || st.st_ctim.tv_nsec != secret->changed.tv_nsec;
}

/* Reads the whole file into secret->file: the bytes, or -1 with errno set. */
static ssize_t read_file(struct kvf_secret *secret, int fd)
{
    size_t used = 0;
    while (used < sizeof secret->file) {
        ssize_t n = read(fd, secret->file + used, sizeof secret->file - used);
        if (n == 0)
            break;
        if (n < 0 && errno != EINTR)
            return -1;
        used += n > 0 ? (size_t)n : 0;
    }
    return (ssize_t)used;
}

enum kvf_status kvf_secret_load(struct kvf_secret *secret, const char *path, char *error, size_t size)
{
    struct stat st = {0};
    enum kvf_status status = KVF_ERR_CONFIG;
    note_file(secret, &st);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0) {
        snprintf(error, size, "cluster.secret_file = %.200s: %s", path, strerror(errno));
        goto done;
    }
    note_file(secret, &st);
    if (!S_ISREG(st.st_mode)) {
        snprintf(error, size, "cluster.secret_file = %.200s is not a file", path);
        goto done;
    }
    if (st.st_mode & (S_IRWXG | S_IRWXO)) {
        snprintf(error, size, "cluster.secret_file = %.200s may be read or written by others (mode %04o); chmod 600 it", path,
                 (unsigned)(st.st_mode & 07777));
        goto done;
    }
    if (st.st_uid != geteuid() && st.st_uid != 0) {
        snprintf(error, size, "cluster.secret_file = %.200s belongs to another user (%u); chown it", path, (unsigned)st.st_uid);
        goto done;
    }
    ssize_t bytes = read_file(secret, fd);
    const char *why = bytes < 0 ? strerror(errno) : "it is too long";
    if (bytes >= 0 && (size_t)bytes <= FILE_BYTES_MAX)
        status = kvf_secret_set(secret, secret->file, (size_t)bytes, &why);
    if (status != KVF_OK)
        snprintf(error, size, "cluster.secret_file = %.200s: %s", path, why);
done:
    OPENSSL_cleanse(secret->file, sizeof secret->file);
    if (fd >= 0)
        close(fd);
    return status;
}
