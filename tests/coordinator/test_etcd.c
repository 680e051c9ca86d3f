/* The coordinator over a real etcd, and kvfcoord as a process. Skipped where etcd is not installed. */
#include "base/env.h"
#include "coordinator/coordinator.h"
#include "coordinator/http.h"
#include "tests/support/etcd.h"
#include "tests/support/relay.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define PREFIX "/kvf/real"
#define PATIENCE (15 * KVF_SEC)

static struct kvf_test_etcd *etcd; /* one for the whole program; a test that kills it starts it again */
static struct kvf_log log_silent;
static struct kvf_counters counters;

struct peer {
    struct kvf_store *store;
    struct kvf_coord *coord;
    unsigned ups, downs;
    int joined; /* 99: not yet */
    int reachable;
    char leader[64];
};

struct answer {
    unsigned n;
    enum kvf_status status;
    struct kvf_placement standing;
};

static void member_up(void *arg, const struct kvf_member *member)
{
    ((struct peer *)arg)->ups++;
}

static void member_down(void *arg, const char *name, uint64_t incarnation)
{
    ((struct peer *)arg)->downs++;
}

static void leader(void *arg, const char *name)
{
    snprintf(((struct peer *)arg)->leader, 64, "%s", name);
}

static void joined(void *arg, enum kvf_status status)
{
    ((struct peer *)arg)->joined = status;
}

static void store_state(void *arg, bool reachable)
{
    ((struct peer *)arg)->reachable = reachable;
}

static void answered(void *arg, enum kvf_status status, const struct kvf_placement *standing)
{
    struct answer *a = arg;
    a->n++;
    a->status = status;
    if (standing)
        a->standing = *standing;
}

static uint64_t now(void)
{
    return kvf_now(kvf_env_real());
}

static void open_peer_at(struct peer *p, const char *endpoints, const char *prefix, uint64_t timeout_ns)
{
    *p = (struct peer){.joined = 99, .reachable = -1};
    struct kvf_store_config store = {.endpoints = endpoints, .timeout_ns = timeout_ns, .log = &log_silent, .counters = &counters};
    assert_int_equal(kvf_store_etcd_create(&store, &p->store), KVF_OK);
    struct kvf_coord_config config = {
        .env = kvf_env_real(),
        .store = p->store,
        .log = &log_silent,
        .prefix = prefix,
        .lease_ttl_ns = 2 * KVF_SEC,
        .handler = {.arg = p,
                    .member_up = member_up,
                    .member_down = member_down,
                    .leader = leader,
                    .joined = joined,
                    .store_state = store_state},
    };
    assert_int_equal(kvf_coord_create(&config, &p->coord), KVF_OK);
}

static void open_peer(struct peer *p, const char *prefix)
{
    open_peer_at(p, kvf_test_etcd_url(etcd), prefix, 2 * KVF_SEC);
}

/* Destroying the store must be quick whatever it was doing. */
static void close_peer(struct peer *p)
{
    kvf_coord_destroy(p->coord);
    uint64_t began = now();
    p->store->ops->destroy(p->store);
    assert_true(now() - began < 2 * KVF_SEC); /* 300 ms on an idle machine */
}

/* Polls both until the condition holds. */
#define WAIT(a, b, condition)                                  \
    do {                                                       \
        uint64_t until_ = now() + PATIENCE;                    \
        while (!(condition)) {                                 \
            assert_true(now() < until_);                       \
            poll_both(a, b);                                   \
        }                                                      \
    } while (0)

static void poll_both(struct peer *a, struct peer *b)
{
    struct pollfd fds[2] = {{.fd = a->store->ops->event_fd(a->store), .events = POLLIN}, {.fd = -1}};
    unsigned n = kvf_coord_poll(a->coord);
    if (b) {
        fds[1] = (struct pollfd){.fd = b->store->ops->event_fd(b->store), .events = POLLIN};
        n += kvf_coord_poll(b->coord);
    }
    if (!n)
        poll(fds, 2, 20);
}

static void poll_for(struct peer *a, struct peer *b, uint64_t ns)
{
    for (uint64_t until = now() + ns; now() < until;)
        poll_both(a, b);
}

static struct kvf_member member_of(const char *name, uint64_t incarnation)
{
    struct kvf_member m = {.incarnation = incarnation, .address = "\0\1\2", .address_bytes = 3, .host = "h", .lend_bytes = 9};
    snprintf(m.name, sizeof m.name, "%s", name);
    return m;
}

static void join(struct peer *p, const char *name, uint64_t incarnation)
{
    struct kvf_member m = member_of(name, incarnation);
    assert_int_equal(kvf_coord_join(p->coord, &m, false), KVF_OK);
    WAIT(p, NULL, p->joined != 99);
}

static int set_up(void **state)
{
    kvf_log_init(&log_silent, "test", KVF_LOG_WARN, getenv("KVF_TEST_LOG") ? stderr : NULL);
    etcd = kvf_test_etcd_start();
    return 0;
}

static int tear_down(void **state)
{
    kvf_test_etcd_stop(etcd);
    return 0;
}

static void need_etcd(void)
{
    if (!etcd) {
        print_message("no etcd on this machine\n");
        skip();
    }
}

/* ---------------------------------------------------------------------------------------------------- the library */

static void http_tells_unsent_from_unanswered(void **state)
{
    struct kvf_http *http;
    char *text = NULL, error[200] = "", url[128];
    size_t bytes = 0;
    long code = 0;
    assert_int_equal(kvf_http_create(NULL, &http), KVF_OK);
    assert_int_equal(kvf_http_request(http, "http://127.0.0.1:1/", NULL, KVF_SEC, &code, &text, &bytes, error, sizeof error),
                     KVF_ERR_STORE);
    assert_true(error[0]);
    assert_int_equal(kvf_http_request(http, "file:///etc/passwd", NULL, KVF_SEC, &code, &text, &bytes, error, sizeof error),
                     KVF_ERR_STORE);
    assert_null(text);
    if (etcd) {
        snprintf(url, sizeof url, "%s/health", kvf_test_etcd_url(etcd));
        assert_int_equal(kvf_http_request(http, url, NULL, 5 * KVF_SEC, &code, &text, &bytes, error, sizeof error), KVF_OK);
        assert_int_equal(code, 200);
        assert_int_equal(strlen(text), bytes);
        kvf_free(text);
        text = NULL;
        kvf_test_etcd_pause(etcd, true);
        uint64_t began = now();
        enum kvf_status status = kvf_http_request(http, url, NULL, 200 * KVF_MS, &code, &text, &bytes, error, sizeof error);
        kvf_test_etcd_pause(etcd, false);
        assert_int_equal(status, KVF_ERR_DEADLINE);
        assert_true(now() - began < 2 * KVF_SEC);
    }
    kvf_http_destroy(http);
}

static void bad_endpoints_are_a_configuration_error(void **state)
{
    static const char *const bad[] = {"", ",", "localhost:2379", "ftp://a", "http://a,b",
                                      "http://1,http://2,http://3,http://4,http://5,http://6,http://7,http://8,http://9"};
    struct kvf_store *store;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(kvf_store_etcd_create(&(struct kvf_store_config){.endpoints = bad[i]}, &store), KVF_ERR_CONFIG);
}

static void two_members_see_each_other_and_one_goes(void **state)
{
    need_etcd();
    struct peer a, b, c;
    open_peer(&a, PREFIX "1");
    open_peer(&b, PREFIX "1");
    open_peer(&c, PREFIX "1");
    join(&a, "a", 1);
    join(&b, "b", 0xffffffffffffffff);
    assert_int_equal(a.joined, KVF_OK);
    assert_int_equal(b.joined, KVF_OK);
    WAIT(&a, &b, kvf_coord_member(a.coord, "b"));
    const struct kvf_member *m = kvf_coord_member(a.coord, "b");
    assert_true(m->incarnation == 0xffffffffffffffff);
    assert_memory_equal(m->address, "\0\1\2", 3);
    join(&c, "a", 7);
    assert_int_equal(c.joined, KVF_ERR_EXISTS);
    close_peer(&c);
    poll_for(&a, &b, 3 * KVF_SEC); /* longer than the lease: keepalives work */
    assert_int_equal(a.downs + b.downs, 0);
    kvf_coord_leave(b.coord);
    WAIT(&a, &b, kvf_coord_left(b.coord) && a.downs == 1);
    close_peer(&b);
    close_peer(&a);
}

static void a_dead_member_goes_down_with_its_lease(void **state)
{
    need_etcd();
    struct peer a, b;
    open_peer(&a, PREFIX "2");
    open_peer(&b, PREFIX "2");
    join(&a, "a", 1);
    join(&b, "b", 2);
    WAIT(&a, &b, kvf_coord_member(a.coord, "b"));
    close_peer(&b);
    WAIT(&a, NULL, a.downs == 1);
    assert_null(kvf_coord_member(a.coord, "b"));
    close_peer(&a);
}

static enum kvf_status wait_answer(struct peer *p, struct answer *a, enum kvf_status started)
{
    unsigned before = a->n;
    assert_int_equal(started, KVF_OK);
    WAIT(p, NULL, a->n > before);
    return a->status;
}

static void sessions_are_created_moved_and_removed(void **state)
{
    need_etcd();
    struct peer a, b;
    struct answer r = {.n = 0};
    open_peer(&a, PREFIX "3");
    open_peer(&b, PREFIX "3");
    join(&a, "a", 1);
    join(&b, "b", 2);
    assert_int_equal(wait_answer(&a, &r, kvf_coord_session_create(a.coord, 7, "a", "m", answered, &r)), KVF_OK);
    assert_int_equal(wait_answer(&b, &r, kvf_coord_session_create(b.coord, 7, "b", "m", answered, &r)), KVF_ERR_EXISTS);
    assert_string_equal(r.standing.home, "a");
    assert_int_equal(wait_answer(&b, &r, kvf_coord_session_move(b.coord, 7, "a", 1, "b", 300, answered, &r)), KVF_OK);
    assert_int_equal(r.standing.epoch, 2);
    assert_int_equal(wait_answer(&a, &r, kvf_coord_session_move(a.coord, 7, "a", 1, "a", 300, answered, &r)), KVF_ERR_STALE);
    assert_string_equal(r.standing.home, "b");
    assert_int_equal(wait_answer(&b, &r, kvf_coord_session_update(b.coord, 7, "b", 2, KVF_SESSION_PARKED, 301, answered, &r)),
                     KVF_OK);
    WAIT(&a, &b, kvf_coord_placement_known(a.coord, 7) && kvf_coord_placement_known(a.coord, 7)->tokens == 301);
    assert_int_equal(wait_answer(&a, &r, kvf_coord_session_remove(a.coord, 7, "b", 2, answered, &r)), KVF_OK);
    WAIT(&a, &b, !kvf_coord_placement_known(a.coord, 7) && !kvf_coord_placement_known(b.coord, 7));
    assert_int_equal(wait_answer(&a, &r, kvf_coord_session_read(a.coord, 7, answered, &r)), KVF_ERR_NOT_FOUND);
    close_peer(&b);
    close_peer(&a);
}

/* etcd is killed while two members live, a session is changed, and etcd comes back with its data. */
static void a_killed_etcd_comes_back_and_everything_goes_on(void **state)
{
    need_etcd();
    struct peer a, b;
    struct answer r = {.n = 0};
    open_peer(&a, PREFIX "4");
    open_peer(&b, PREFIX "4");
    join(&a, "a", 1);
    join(&b, "b", 2);
    WAIT(&a, &b, kvf_coord_member(a.coord, "b"));
    assert_int_equal(wait_answer(&a, &r, kvf_coord_session_create(a.coord, 7, "a", "m", answered, &r)), KVF_OK);
    kvf_test_etcd_kill(etcd);
    enum kvf_status status = wait_answer(&a, &r, kvf_coord_session_move(a.coord, 7, "a", 1, "b", 9, answered, &r));
    assert_true(status == KVF_ERR_STORE || status == KVF_ERR_DEADLINE);
    WAIT(&a, &b, !a.reachable && !b.reachable);
    poll_for(&a, &b, 3 * KVF_SEC); /* longer than the lease */
    assert_int_equal(a.downs + b.downs, 0);
    assert_true(kvf_test_etcd_restart(etcd));
    WAIT(&a, &b, a.reachable && b.reachable);
    assert_int_equal(wait_answer(&a, &r, kvf_coord_session_read(a.coord, 7, answered, &r)), KVF_OK);
    assert_string_equal(r.standing.home, "a");
    assert_int_equal(wait_answer(&a, &r, kvf_coord_session_move(a.coord, 7, "a", 1, "b", 9, answered, &r)), KVF_OK);
    WAIT(&a, &b,
         kvf_coord_placement_known(b.coord, 7) && kvf_coord_placement_known(b.coord, 7)->epoch == 2); /* b's watch runs again */
    assert_int_equal(a.downs + b.downs, 0);
    close_peer(&b);
    close_peer(&a);
}

/* An etcd that hangs with its connections open answers nothing: requests end at their deadline, and destroy does not wait. */
static void a_hanging_etcd_holds_up_nobody(void **state)
{
    need_etcd();
    struct peer a;
    struct answer r = {.n = 0};
    open_peer_at(&a, kvf_test_etcd_url(etcd), PREFIX "5", 500 * KVF_MS);
    join(&a, "a", 1);
    kvf_test_etcd_pause(etcd, true);
    uint64_t began = now();
    enum kvf_status status = wait_answer(&a, &r, kvf_coord_session_create(a.coord, 7, "a", "m", answered, &r));
    uint64_t took = now() - began;
    kvf_coord_session_create(a.coord, 8, "a", "m", answered, &r);
    poll_for(&a, NULL, 100 * KVF_MS);
    began = now();
    close_peer(&a);
    took = took > now() - began ? took : now() - began;
    kvf_test_etcd_pause(etcd, false);
    assert_int_equal(status, KVF_ERR_DEADLINE);
    assert_int_equal(r.status, KVF_CANCELLED);
    assert_true(took < 2 * KVF_SEC);
}

static void a_dead_endpoint_is_passed_over(void **state)
{
    need_etcd();
    char endpoints[200];
    struct peer a;
    snprintf(endpoints, sizeof endpoints, "http://127.0.0.1:1, %s/", kvf_test_etcd_url(etcd));
    open_peer_at(&a, endpoints, PREFIX "6", 2 * KVF_SEC);
    join(&a, "a", 1);
    assert_int_equal(a.joined, KVF_OK);
    struct answer r = {.n = 0};
    assert_int_equal(wait_answer(&a, &r, kvf_coord_session_create(a.coord, 7, "a", "m", answered, &r)), KVF_OK);
    WAIT(&a, NULL, kvf_coord_placement_known(a.coord, 7));
    close_peer(&a);
}

static void an_absent_etcd_is_told_within_the_timeout(void **state)
{
    struct peer a;
    char error[300];
    open_peer_at(&a, "http://127.0.0.1:1", PREFIX "7", KVF_SEC);
    uint64_t began = now();
    join(&a, "a", 1);
    assert_int_equal(a.joined, KVF_ERR_STORE);
    assert_true(now() - began < 3 * KVF_SEC);
    kvf_store_etcd_error(a.store, error, sizeof error);
    assert_non_null(strstr(error, "127.0.0.1"));
    close_peer(&a);
}

/* What was compacted away while the watch was elsewhere is made good by a range; here by hand, through the seam. */
struct seen {
    unsigned events, lost;
    uint64_t revision;
    char value[64];
};

static void on_event(void *arg, const struct kvf_store_kv *kvs, size_t n, uint64_t revision, bool lost)
{
    struct seen *seen = arg;
    seen->lost += lost;
    seen->events += (unsigned)n;
    seen->revision = revision;
    if (n)
        snprintf(seen->value, sizeof seen->value, "%s", kvs[n - 1].value ? kvs[n - 1].value : "(gone)");
}

static void on_result(void *arg, const struct kvf_store_result *result)
{
    *(struct kvf_store_result *)arg = *result;
}

static void poll_until(struct kvf_store *store, const unsigned *counter, unsigned want)
{
    for (uint64_t until = now() + PATIENCE; *counter < want;) {
        struct pollfd fd = {.fd = store->ops->event_fd(store), .events = POLLIN};
        assert_true(now() < until);
        if (!store->ops->poll(store))
            poll(&fd, 1, 100);
    }
}

static uint64_t put_by_hand(struct kvf_store *store, const char *key, const char *value)
{
    struct kvf_store_txn *txn = calloc(1, sizeof *txn);
    struct kvf_store_result result = {.status = KVF_IN_PROGRESS};
    txn->n_put = 1;
    snprintf(txn->put[0].key, sizeof txn->put[0].key, "%s", key);
    snprintf(txn->put[0].value, sizeof txn->put[0].value, "%s", value);
    assert_int_equal(store->ops->txn(store, txn, on_result, &result), KVF_OK);
    for (uint64_t until = now() + PATIENCE; result.status == KVF_IN_PROGRESS && now() < until;) {
        struct pollfd fd = {.fd = store->ops->event_fd(store), .events = POLLIN};
        poll(&fd, 1, 100);
        store->ops->poll(store);
    }
    assert_int_equal(result.status, KVF_OK);
    free(txn);
    return result.revision;
}

static void a_watch_below_the_compacted_revision_is_lost(void **state)
{
    need_etcd();
    struct kvf_store *store;
    struct kvf_store_config config = {.endpoints = kvf_test_etcd_url(etcd), .timeout_ns = 2 * KVF_SEC, .log = &log_silent};
    struct seen seen = {.events = 0};
    struct kvf_http *http;
    char url[128], body[64], error[200], *text;
    size_t bytes;
    long code;
    assert_int_equal(kvf_store_etcd_create(&config, &store), KVF_OK);
    uint64_t first = put_by_hand(store, PREFIX "8/x", "one"), last = put_by_hand(store, PREFIX "8/x", "two");
    assert_int_equal(store->ops->watch(store, PREFIX "8/", first, on_event, &seen), KVF_OK);
    poll_until(store, &seen.events, 2);
    assert_true(seen.revision == last);
    assert_string_equal(seen.value, "two");
    assert_int_equal(kvf_http_create(NULL, &http), KVF_OK);
    snprintf(url, sizeof url, "%s/v3/kv/compaction", kvf_test_etcd_url(etcd));
    snprintf(body, sizeof body, "{\"revision\":\"%lu\"}", (unsigned long)last);
    assert_int_equal(kvf_http_request(http, url, body, 5 * KVF_SEC, &code, &text, &bytes, error, sizeof error), KVF_OK);
    kvf_free(text);
    kvf_http_destroy(http);
    assert_int_equal(store->ops->watch(store, PREFIX "8/", first, on_event, &seen), KVF_OK);
    poll_until(store, &seen.lost, 1);
    assert_int_equal(store->ops->watch(store, PREFIX "8/", last + 1000, on_event, &seen), KVF_OK); /* etcd is behind us */
    poll_until(store, &seen.lost, 2);
    store->ops->destroy(store);
}

/* ---------------------------------------------------------------------------------------------------- a watch that is dead */

#define KNOWN_NS (10 * KVF_SEC) /* a proof every 3 s, 1 s to catch up, 2 s more after a touch, then a range; and a loaded machine */

static struct kvf_test_relay *open_relayed(struct peer *p, const char *name)
{
    struct kvf_test_relay *relay = kvf_test_relay_start(kvf_test_etcd_url(etcd));
    assert_non_null(relay);
    open_peer_at(p, kvf_test_relay_url(relay), PREFIX "10", 2 * KVF_SEC);
    join(p, name, 1);
    assert_int_equal(p->joined, KVF_OK);
    return relay;
}

/* What etcd had at `since` is either known, or the view says that it is older than that. Returns whether it is known. */
static bool tells_its_age(struct peer *p, uint64_t since)
{
    bool known = kvf_coord_placement_known(p->coord, 7) != NULL;
    assert_true(known == (kvf_coord_as_of(p->coord) > since));
    return known;
}

/* Nothing comes on the watches of a and c any more, and no connection ends; every other request is answered. c wants to know. */
static void a_watch_that_is_dead_while_its_connection_stands_is_made_anew(void **state)
{
    need_etcd();
    enum { A, B, C, N };
    struct peer p[N];
    struct kvf_test_relay *relay[N];
    struct answer r = {.n = 0};
    static const char *const names[N] = {"a", "b", "c"};
    for (unsigned i = 0; i < N; i++)
        relay[i] = open_relayed(&p[i], names[i]);
    assert_int_equal(wait_answer(&p[B], &r, kvf_coord_session_create(p[B].coord, 6, "b", "m", answered, &r)), KVF_OK);
    WAIT(&p[A], &p[C], kvf_coord_placement_known(p[A].coord, 6) && kvf_coord_placement_known(p[C].coord, 6)); /* all watch */
    assert_int_equal(kvf_test_relay_silence_watches(relay[A]), 1);
    assert_int_equal(kvf_test_relay_silence_watches(relay[C]), 1);

    assert_int_equal(wait_answer(&p[B], &r, kvf_coord_session_create(p[B].coord, 7, "b", "m", answered, &r)), KVF_OK);
    uint64_t since = now(), ticket = kvf_coord_refresh(p[C].coord);
    for (bool known = false; !known;) {
        assert_true(now() - since < KNOWN_NS);
        poll_both(&p[A], &p[B]);
        kvf_coord_poll(p[C].coord);
        known = tells_its_age(&p[A], since);
        known = tells_its_age(&p[C], since) && known;
        assert_true(kvf_coord_refreshed(p[C].coord, ticket) == tells_its_age(&p[C], since));
    }
    print_message("known after %.1f s\n", (double)(now() - since) / KVF_SEC);

    /* The new watches tell what is new, the old connections are closed, and b's, which lived, was left alone. */
    assert_int_equal(wait_answer(&p[B], &r, kvf_coord_session_create(p[B].coord, 8, "b", "m", answered, &r)), KVF_OK);
    WAIT(&p[A], &p[C], kvf_coord_placement_known(p[A].coord, 8) && kvf_coord_placement_known(p[C].coord, 8));
    assert_int_equal(p[A].downs + p[B].downs + p[C].downs, 0); /* nobody's lease ended: it was not that which told */
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(kvf_test_relay_watches(relay[i]), i == B ? 1 : 2);
        assert_int_equal(kvf_test_relay_silenced(relay[i]), 0);
        close_peer(&p[i]);
        kvf_test_relay_stop(relay[i]);
    }
}

/* ---------------------------------------------------------------------------------------------------- kvfcoord */

struct child {
    pid_t pid;
    int out;
    char text[16384];
    size_t used;
};

static bool start_kvfcoord(struct child *c, const char *endpoints, const char *extra)
{
    const char *build = getenv("KVF_BUILD");
    char program[4096], setting[300];
    int fds[2];
    if (!build)
        return false;
    snprintf(program, sizeof program, "%s/kvfcoord", build);
    snprintf(setting, sizeof setting, "etcd.endpoints=%s", endpoints);
    if (access(program, X_OK) || pipe2(fds, O_CLOEXEC))
        return false;
    *c = (struct child){.pid = fork(), .out = fds[0]};
    if (c->pid == 0) {
        dup2(fds[1], 1);
        dup2(fds[1], 2);
        execl(program, program, "--set", setting, "--set", "etcd.prefix=" PREFIX "9", "--set", "etcd.timeout=1s", "--set",
              "etcd.lease=2s", extra, (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    return c->pid > 0;
}

/* Reads until the text holds `want` or the child closes its output. */
static bool read_until(struct child *c, const char *want, struct peer *meanwhile)
{
    for (uint64_t until = now() + PATIENCE; now() < until;) {
        struct pollfd fd = {.fd = c->out, .events = POLLIN};
        if (want && strstr(c->text, want))
            return true;
        if (meanwhile)
            kvf_coord_poll(meanwhile->coord);
        if (poll(&fd, 1, 20) <= 0)
            continue;
        ssize_t n = read(c->out, c->text + c->used, sizeof c->text - 1 - c->used);
        if (n <= 0)
            return !want;
        c->used += (size_t)n;
    }
    return false;
}

static int end_of(struct child *c)
{
    int status = -1;
    for (uint64_t until = now() + PATIENCE; now() < until; usleep(5000))
        if (waitpid(c->pid, &status, WNOHANG) == c->pid) {
            close(c->out);
            return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
        }
    kill(c->pid, SIGKILL);
    waitpid(c->pid, &status, 0);
    close(c->out);
    return -1;
}

static void kvfcoord_leads_tells_and_leaves(void **state)
{
    need_etcd();
    struct child c;
    struct peer a;
    struct answer r = {.n = 0};
    if (!start_kvfcoord(&c, kvf_test_etcd_url(etcd), "--json"))
        skip();
    open_peer(&a, PREFIX "9");
    join(&a, "node-a", 1);
    assert_true(read_until(&c, "\"event\":\"member_up\"", &a));
    assert_true(read_until(&c, "\"name\":\"node-a\"", &a));
    assert_true(read_until(&c, "\"me\":true", &a));
    assert_int_equal(wait_answer(&a, &r, kvf_coord_session_create(a.coord, 77, "node-a", "m", answered, &r)), KVF_OK);
    assert_true(read_until(&c, "\"event\":\"session\"", &a));
    WAIT(&a, NULL, !strncmp(a.leader, "coord-", 6));
    kvf_coord_leave(a.coord);
    WAIT(&a, NULL, kvf_coord_left(a.coord));
    assert_true(read_until(&c, "\"event\":\"member_down\"", NULL));
    close_peer(&a);
    kill(c.pid, SIGTERM);
    assert_true(read_until(&c, NULL, NULL));
    assert_int_equal(end_of(&c), 0);
    open_peer(&a, PREFIX "9"); /* its lease is revoked: nobody leads */
    assert_int_equal(kvf_coord_join(a.coord, NULL, false), KVF_OK);
    WAIT(&a, NULL, a.joined == KVF_OK);
    assert_string_equal(a.leader, "");
    close_peer(&a);
}

static void kvfcoord_without_etcd_ends_with_3_and_one_line(void **state)
{
    struct child c;
    uint64_t began = now();
    if (!start_kvfcoord(&c, "http://127.0.0.1:1", NULL))
        skip();
    assert_true(read_until(&c, NULL, NULL));
    assert_int_equal(end_of(&c), 3);
    assert_true(now() - began < 5 * KVF_SEC);
    char *line = strstr(c.text, "kvfcoord: etcd cannot be reached");
    assert_non_null(line);
    assert_null(strstr(strchr(line, '\n') + 1, "kvfcoord: "));
}

static void kvfcoord_may_wait_for_etcd(void **state)
{
    need_etcd();
    struct child c;
    kvf_test_etcd_kill(etcd);
    setenv("KVF_ETCD_REQUIRED", "false", 1);
    bool started = start_kvfcoord(&c, kvf_test_etcd_url(etcd), NULL);
    unsetenv("KVF_ETCD_REQUIRED");
    bool told = started && read_until(&c, "etcd does not answer", NULL);
    assert_true(kvf_test_etcd_restart(etcd));
    if (!started)
        skip();
    assert_true(told);
    assert_true(read_until(&c, "(this one)", NULL));
    kill(c.pid, SIGINT);
    assert_true(read_until(&c, NULL, NULL));
    assert_int_equal(end_of(&c), 0);
}

static void kvfcoord_refuses_bad_settings(void **state)
{
    struct child c;
    if (!start_kvfcoord(&c, "127.0.0.1:1", NULL))
        skip();
    assert_true(read_until(&c, NULL, NULL));
    assert_int_equal(end_of(&c), 2);
    assert_true(start_kvfcoord(&c, "http://127.0.0.1:1", "--nonsense"));
    assert_true(read_until(&c, NULL, NULL));
    assert_int_equal(end_of(&c), 2);
    assert_true(start_kvfcoord(&c, "http://127.0.0.1:1", "--check"));
    assert_true(read_until(&c, NULL, NULL));
    assert_int_equal(end_of(&c), 0);
    assert_non_null(strstr(c.text, "would watch"));
    assert_true(start_kvfcoord(&c, "http://127.0.0.1:1", "--help"));
    assert_true(read_until(&c, NULL, NULL));
    assert_int_equal(end_of(&c), 0);
    assert_non_null(strstr(c.text, "exit codes"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(http_tells_unsent_from_unanswered),
        cmocka_unit_test(bad_endpoints_are_a_configuration_error),
        cmocka_unit_test(two_members_see_each_other_and_one_goes),
        cmocka_unit_test(a_dead_member_goes_down_with_its_lease),
        cmocka_unit_test(sessions_are_created_moved_and_removed),
        cmocka_unit_test(a_killed_etcd_comes_back_and_everything_goes_on),
        cmocka_unit_test(a_hanging_etcd_holds_up_nobody),
        cmocka_unit_test(a_dead_endpoint_is_passed_over),
        cmocka_unit_test(an_absent_etcd_is_told_within_the_timeout),
        cmocka_unit_test(a_watch_below_the_compacted_revision_is_lost),
        cmocka_unit_test(a_watch_that_is_dead_while_its_connection_stands_is_made_anew),
        cmocka_unit_test(kvfcoord_leads_tells_and_leaves),
        cmocka_unit_test(kvfcoord_without_etcd_ends_with_3_and_one_line),
        cmocka_unit_test(kvfcoord_may_wait_for_etcd),
        cmocka_unit_test(kvfcoord_refuses_bad_settings),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
