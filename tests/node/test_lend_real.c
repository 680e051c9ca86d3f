/* Lent memory that its owner needs, between real nodes: over UCX, etcd and SSDs. The lender is this program again. It does a round
 * of work of its own whenever it is told to, and says how it stands. */
#define SEED 20261127
#include "tests/node/real_store.h"

#include <fcntl.h>
#include <jansson.h>

#define PREFIX "/lends"
#define WITHIN_NS (2 * KVF_SEC) /* lend.reclaim_within of the lender */
#define LATE_NS (1 * KVF_SEC)   /* of what is told between two looks on a busy machine */
#define THERE 40u               /* blocks of the home that are to lie at the lender */
#define OWN 88u                 /* of the lender: more than its DRAM and what it lends */
#define ROUND 12u               /* of these it reads in a round */
#define PATIENCE_NS (40 * KVF_SEC)

/* ---------------------------------------------------------------- the lender */

static long number(const json_t *root, const char *part, const char *name)
{
    return (long)json_integer_value(json_object_get(json_object_get(root, part), name));
}

static void say(struct kvf_node *node)
{
    char *text = NULL;
    if (kvf_node_status_json(node, &text) != KVF_OK)
        exit(7);
    json_t *root = json_loads(text, 0, NULL);
    printf("%ld %ld %ld %ld %ld %ld\n", number(root, "lending", "others_bytes"), number(root, "lending", "wanted_bytes"),
           number(root, "lending", "own_bytes"), number(root, "counters", "lend_claims"), number(root, "counters", "lend_returns"),
           number(root, "counters", "lent_blocks_revoked"));
    fflush(stdout);
    json_decref(root);
    kvf_free(text);
}

/* Some of its own blocks, one after the other; nonzero: one was wrong. */
static int work(struct home *own, uint8_t data[BLOCK])
{
    static uint64_t at;
    for (; own->next < OWN; own->next++) {
        bytes_of(own->next, data);
        if (one(own, KVF_OP_PUT, own->next, data).status != KVF_OK)
            return 1;
    }
    for (unsigned i = 0; i < ROUND; i++, at = (at + 1) % OWN) {
        if (one(own, KVF_OP_GET, at, data).status != KVF_OK)
            return 1;
        assert_bytes(at, data);
    }
    return 0;
}

/* 'w': works; 'r': removes all that is its own; 's': does nothing. Then it says how it stands. */
static int lender_main(char **argv)
{
    static uint8_t data[BLOCK];
    const char *const settings[] = {"node.name", "lender", "etcd.endpoints", argv[2], "etcd.prefix", PREFIX,
                                    "fabric.transport", "tcp", "dram.bytes", "2M", "lend.bytes", "4M",
                                    "lend.reclaim_within", "2s", "lend.return_after", "1s", "lend.borrow", "false",
                                    "fetch.staging", "4M", "block.count_max", "4096", "etcd.lease", "1s",
                                    "admin.listen", "", "log.level", "error", "ssd.path", argv[3], "ssd.bytes", "64M", NULL};
    struct home own = {.node = node_open(settings)};
    if (!own.node || kvf_queue_create(own.node, 8, &own.queue) != KVF_OK)
        return 1;
    for (int c; (c = getchar()) != EOF;) {
        if (c == 'w' && work(&own, data))
            return 2;
        for (; c == 'r' && own.next > 0; own.next--)
            one(&own, KVF_OP_REMOVE, own.next - 1, NULL);
        say(own.node);
    }
    return 0;
}

struct lender {
    pid_t pid;
    FILE *to, *from;
    long others, wanted, own, claims, returns, revoked; /* as it said last */
};

static void tell(struct lender *l, char what)
{
    char line[200] = "";
    assert_true(fputc(what, l->to) == what && fflush(l->to) == 0);
    assert_non_null(fgets(line, sizeof line, l->from));
    assert_int_equal(sscanf(line, "%ld %ld %ld %ld %ld %ld", &l->others, &l->wanted, &l->own, &l->claims, &l->returns, &l->revoked),
                     6);
}

static void lender_start(struct lender *l)
{
    int to[2], from[2];
    char path[100];
    snprintf(path, sizeof path, "%s/lender", folder);
    assert_int_equal(pipe2(to, O_CLOEXEC) | pipe2(from, O_CLOEXEC), 0);
    char *arguments[] = {"test_lend_real", "lender", (char *)(uintptr_t)kvf_test_etcd_url(etcd), path, NULL};
    *l = (struct lender){.pid = program_again(arguments, to[0], from[1]), .to = fdopen(to[1], "w"), .from = fdopen(from[0], "r")};
    close(to[0]);
    close(from[1]);
    tell(l, 's');
}

static void lender_stop(struct lender *l)
{
    int status = -1;
    fclose(l->to); /* it ends by itself */
    assert_int_equal(waitpid(l->pid, &status, 0), l->pid);
    assert_int_equal(status, 0);
    fclose(l->from);
}

/* ---------------------------------------------------------------- the borrower */

static void put_next(struct home *h)
{
    uint8_t data[BLOCK];
    bytes_of(h->next, data);
    assert_int_equal(one(h, KVF_OP_PUT, h->next, data).status, KVF_OK);
    h->next++;
}

/* Of its blocks from `first` on, those that lie at the lender. */
static unsigned lent(struct home *h, uint64_t first)
{
    unsigned n = 0;
    for (uint64_t key = first; key < h->next; key++)
        n += at_lender(h, key);
    return n;
}

static void all_read_right(struct home *h)
{
    static uint8_t data[BLOCK];
    for (uint64_t key = 0; key < h->next; key++) {
        memset(data, 0, sizeof data);
        assert_int_equal(one(h, KVF_OP_GET, key, data).status, KVF_OK);
        assert_bytes(key, data);
    }
}

/* The lender works until it has its memory; how long the longest time was for which it wanted some. */
static uint64_t works_until_it_has_its_memory(struct lender *l, long before)
{
    uint64_t longest = 0, since = 0, until = now_ns() + PATIENCE_NS;
    while ((l->others > before / 4 || l->wanted > 0) && now_ns() < until) {
        tell(l, 'w');
        since = !l->wanted ? 0 : since ? since : now_ns();
        longest = since && now_ns() - since > longest ? now_ns() - since : longest;
    }
    return longest;
}

static void a_lender_that_needs_its_memory_has_it_back_and_lends_again(void **state)
{
    if (!etcd)
        skip();
    char path[100];
    struct lender l;
    lender_start(&l);
    snprintf(path, sizeof path, "%s/home", folder);
    const char *const settings[] = {"node.name", "home", "etcd.endpoints", kvf_test_etcd_url(etcd), "etcd.prefix", PREFIX,
                                    "fabric.transport", "tcp", "dram.bytes", "1M", "fetch.staging", "4M",
                                    "block.count_max", "4096", "etcd.lease", "1s", "admin.listen", "", "log.level", "error",
                                    "ssd.path", path, "ssd.bytes", "64M", NULL};
    struct home h = {.node = node_open(settings)};
    assert_non_null(h.node);
    assert_int_equal(kvf_queue_create(h.node, 8, &h.queue), KVF_OK);
    for (uint64_t until = now_ns() + PATIENCE_NS; lent(&h, 0) < THERE && now_ns() < until;)
        for (unsigned i = 0; i < 8; i++)
            put_next(&h);
    assert_true(lent(&h, 0) >= THERE);
    tell(&l, 's');
    long before = l.others;
    assert_true(before >= (long)(THERE * BLOCK) && l.claims == 0);

    uint64_t start = now_ns(), longest = works_until_it_has_its_memory(&l, before), took = now_ns() - start;
    print_message("of %ld KiB that others had it left them %ld after %.1f s, in %ld steps, none of which took more than %.1f s\n",
                  before >> 10, l.others >> 10, (double)took / 1e9, l.claims, (double)longest / 1e9);
    assert_true(l.claims > 0 && l.others <= before / 4 && l.own > 0);
    assert_true(longest <= WITHIN_NS + LATE_NS);
    assert_int_equal(l.revoked, 0); /* the borrower had time, and another place */
    all_read_right(&h);

    tell(&l, 'r');
    uint64_t first = h.next;
    start = now_ns();
    while (lent(&h, first) == 0 && now_ns() < start + PATIENCE_NS) {
        for (unsigned i = 0; i < 4; i++)
            put_next(&h);
        usleep(100000);
    }
    tell(&l, 's');
    print_message("it had nothing to do, and lent again after %.1f s\n", (double)(now_ns() - start) / 1e9);
    assert_true(lent(&h, first) > 0 && l.returns > 0);
    all_read_right(&h);
    kvf_queue_destroy(h.queue);
    kvf_node_close(h.node);
    lender_stop(&l);
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "lender") == 0)
        return lender_main(argv);
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lender_that_needs_its_memory_has_it_back_and_lends_again),
    };
    return cmocka_run_group_tests(tests, open_world, close_world);
}
