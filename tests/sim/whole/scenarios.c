/* Regressions: small scripted cases, and seeds that found a bug once. */
#include "tests/sim/whole/world.h"

#include "node/drain.h"
#include <string.h>

struct scenario {
    const char *name;
    struct world_options options;
};

/* A node dies in the middle of the work, comes back, and nothing is wrong or left. */
static void one_dies(struct world *w)
{
    world_settle(w, KVF_SEC);
    world_crash(&w->nodes[1], false, false);
    world_settle(w, 12 * KVF_SEC);
}

/* One node does not run for longer than the others wait for it. */
static void one_stands_still(struct world *w)
{
    world_settle(w, KVF_SEC / 10);
    world_pause(&w->nodes[0], 4 * KVF_SEC);
    world_settle(w, 6 * KVF_SEC);
}

/* Links clogged one by one, and healed in another order. */
static void links_clog(struct world *w)
{
    world_settle(w, KVF_SEC / 10);
    for (unsigned i = 0; i + 1 < w->n; i++) {
        faults_direction(w, i, i + 1, false, (3 - i % 3) * KVF_SEC);
        faults_direction(w, i + 1, i, true, (1 + i % 3) * KVF_SEC);
        world_settle(w, KVF_SEC / 4);
    }
    world_settle(w, 4 * KVF_SEC);
}

/* The first node of which others have something and which has sessions; NULL: none. */
static struct world_node *lender_and_home(struct world *w)
{
    for (unsigned i = 0; i < w->n; i++) {
        struct kvf_drain_stats stats;
        kvf_drain_stats(w->nodes[i].sim->core, &stats);
        if (stats.lent_bytes > 0 && stats.home_sessions > 0)
            return &w->nodes[i];
    }
    return NULL;
}

/* A node is drained while all work: in time it has nothing of others any more. */
static void one_is_drained(struct world *w)
{
    struct world_node *n;
    struct kvf_drain_stats stats;
    uint64_t end = world_now(w) + 20 * KVF_SEC;
    while (!(n = lender_and_home(w)))
        if (world_step(w), world_now(w) >= end)
            world_violated(w, "nobody lends anything");
    end = world_now(w) + 30 * KVF_SEC;
    faults_drain(n, 5 * KVF_SEC, end);
    do {
        world_step(w);
        kvf_drain_stats(n->sim->core, &stats);
    } while (!stats.empty && world_now(w) < end);
    if (!stats.empty)
        world_violated(w, "node %s is not empty: %llu bytes lent, %llu sessions came, %llu have left with %llu blocks", n->name,
                       (unsigned long long)stats.lent_bytes, (unsigned long long)stats.incoming_sessions,
                       (unsigned long long)stats.departed_sessions, (unsigned long long)stats.departed_blocks);
    world_settle(w, 2 * KVF_SEC);
}

static const struct scenario scenarios[] = {
    {"one node dies silently", {.seed = 7, .steps = 200, .calm = true, .script = one_dies}},
    {"one node stands still", {.seed = 11, .steps = 200, .calm = true, .script = one_stands_still}},
    {"links clog one by one", {.seed = 5, .steps = 200, .calm = true, .script = links_clog}},
    {"one node is drained", {.seed = 13, .steps = 200, .calm = true, .script = one_is_drained}},
    {"one node of two is drained", {.seed = 9, .steps = 200, .calm = true, .script = one_is_drained}},
    /* Seeds, each of which found a bug once. */
    {"a session without tokens moves", {.seed = 48, .steps = 200}},
    {"the answer to a drop is lost", {.seed = 33, .steps = 400}},
    {"a fork fails while etcd is away", {.seed = 141, .steps = 2500}},
    {"an offer comes twice", {.seed = 38, .steps = 1200}},
    {"a move's outcome is known when its target has dropped it", {.seed = 146, .steps = 2500}},
    {"a lender's lease ends and it comes back", {.seed = 69, .steps = 300}},
    {"a home that lent to its own session is not told who has it now", {.seed = 1001012, .steps = 6000}},
    {"a session comes while blocks of an earlier one of its id are still read", {.seed = 5000481}},
    {"what a departed session left here is damaged", {.seed = 5000332, .steps = 800}},
    {"etcd drops a lender between two messages of a spill", {.seed = 1001593}},
    {"what moved away is still written down when its id comes again", {.seed = 6009168}},
    {"an operator moves a session while its step fails", {.seed = 1795684685490}},
    {"an operator moves a fork that is not filled yet", {.seed = 1795684686324}},
    {"a lender's watch dies while sessions begin and rest", {.seed = 468, .drowsy = true}},
    {"watches die, lag and are held while sessions move", {.seed = 435, .drowsy = true}},
};

unsigned scenarios_count(void)
{
    return sizeof scenarios / sizeof *scenarios;
}

const char *scenarios_name(unsigned number)
{
    return scenarios[number].name;
}

void scenarios_run(unsigned number, struct sim_engine *const *engines, bool verbose)
{
    struct world_options options = scenarios[number].options;
    options.verbose = verbose;
    struct world *w = world_create(&options, engines);
    world_run(w);
    world_destroy(w);
}
