/* One query row has the same bits whatever is computed beside it, wherever its chunks lie and whatever lies behind what
 * it may see: the promise of dev.h that makes decode and prefill, and all tiers, agree. */
#include "fixture.h"

#define EACH_TABLE(dev) \
    for (const struct kvf_dev *const *table = kvf_dev_cpu_all(), *dev; (dev = *table) != NULL; table++)

static const enum kvf_dtype dtypes[] = {KVF_F32, KVF_F16, KVF_BF16};
enum { N_DTYPES = 3 };

/* Row r of the fixture alone must give the bits that lie in the fixture's out. */
static void check_row_alone(const struct kvf_dev *dev, const struct fixture *f, uint32_t r)
{
    float out[512], lse;
    struct kvf_attend one = f->args;
    one.n_queries = 1;
    one.q += r * one.q_stride;
    one.visible += r;
    one.out = out;
    one.lse = &lse;
    one.q_stride = one.out_stride = 0;
    assert_int_equal(dev->attend(dev, NULL, &one), KVF_OK);
    assert_memory_equal(out, f->out + r * f->args.out_stride, f->args.dim_v * sizeof *out);
    assert_memory_equal(&lse, f->lse + r, sizeof lse);
}

static void a_row_alone_equals_the_row_among_384(void **state)
{
    const uint32_t shapes[][4] = {{4, 16, 64, 64}, {8, 16, 128, 128}, {9, 8, 80, 48}, {3, 64, 16, 96}};
    EACH_TABLE(dev) {
        for (size_t i = 0; i < 4 * N_DTYPES; i++) {
            const uint32_t *s = shapes[i / N_DTYPES];
            struct fixture f;
            fixture_init(&f, dtypes[i % N_DTYPES], s[0], s[1], s[2], s[3], 384);
            uint32_t tokens = fixture_tokens(&f);
            for (int pass = 0; pass < 3; pass++) {
                for (uint32_t r = 0; r < 384; r++) /* all tokens; rising as in prefill: every number of them; mixed */
                    f.visible[r] = pass == 0 ? tokens : pass == 1 ? r % (tokens + 1) : random_below(tokens + 1);
                assert_int_equal(dev->attend(dev, NULL, &f.args), KVF_OK);
                for (uint32_t r = 0; r < 384; r++)
                    check_row_alone(dev, &f, r);
            }
            fixture_fini(&f);
        }
    }
}

/* Also in every number of rows, and in more rows than one round takes. */
static void the_number_of_rows_does_not_matter(void **state)
{
    EACH_TABLE(dev) {
        for (int i = 0; i < N_DTYPES; i++) {
            for (uint32_t n = 1; n <= 800; n = n < 30 ? n + 1 : n + 256) {
                struct fixture f;
                fixture_init(&f, dtypes[i], 5, 16, 64, 64, n);
                for (uint32_t r = 0; r < n; r++)
                    f.visible[r] = n % 2 ? 80 : random_below(81);
                assert_int_equal(dev->attend(dev, NULL, &f.args), KVF_OK);
                for (uint32_t r = 0; r < n; r += n < 30 ? 1 : 7)
                    check_row_alone(dev, &f, r);
                fixture_fini(&f);
            }
        }
    }
}

/* The same tokens, moved elsewhere and cut into chunks of another size. */
static void addresses_and_chunk_size_do_not_matter(void **state)
{
    EACH_TABLE(dev) {
        for (int i = 0; i < N_DTYPES; i++) {
            struct fixture a, b;
            fixture_init(&a, dtypes[i], 12, 16, 64, 32, 5);
            fixture_init(&b, dtypes[i], 24, 8, 64, 32, 5);
            for (uint32_t t = 0; t < 192; t++) {
                size_t from, to, bytes = element_bytes(dtypes[i]);
                for (int v = 0; v < 2; v++) {
                    char *p = fixture_place(&a, t, v, &from), *q = fixture_place(&b, t, v, &to);
                    memcpy(q + to * bytes, p + from * bytes, (v ? 32 : 64) * bytes);
                }
            }
            memcpy(b.q, a.q, 5 * a.args.q_stride * sizeof *a.q);
            for (uint32_t r = 0; r < 5; r++)
                a.visible[r] = b.visible[r] = 192 - r * 17;
            assert_int_equal(dev->attend(dev, NULL, &a.args), KVF_OK);
            assert_int_equal(dev->attend(dev, NULL, &b.args), KVF_OK);
            assert_memory_equal(a.out, b.out, 5 * a.args.out_stride * sizeof *a.out);
            assert_memory_equal(a.lse, b.lse, 5 * sizeof *a.lse);
            fixture_fini(&a);
            fixture_fini(&b);
        }
    }
}

/* Behind what a row may see lie NaN and infinity (an open block's unwritten rows): its result stays the same. */
static void unseen_tokens_do_not_matter(void **state)
{
    const float junk[] = {NAN, INFINITY, -INFINITY, 1e4f};
    EACH_TABLE(dev) {
        for (int i = 0; i < N_DTYPES * 20; i++) {
            uint32_t n = 1 + random_below(20);
            struct fixture f;
            fixture_init(&f, dtypes[i % N_DTYPES], 6, 16, 64, 64, n);
            uint32_t most = 0;
            for (uint32_t r = 0; r < n; r++) {
                f.visible[r] = random_below(97);
                most = f.visible[r] > most ? f.visible[r] : most;
            }
            float out[20 * 69], lse[20];
            assert_int_equal(dev->attend(dev, NULL, &f.args), KVF_OK);
            memcpy(out, f.out, n * f.args.out_stride * sizeof *out);
            memcpy(lse, f.lse, n * sizeof *lse);
            for (uint32_t t = 0; t < 96; t++) {
                size_t at;
                for (int v = 0; v < 2 && t >= most; v++) {
                    void *p = fixture_place(&f, t, v, &at);
                    for (uint32_t d = 0; d < 64; d++)
                        element_set(p, dtypes[i % N_DTYPES], at + d, junk[random_below(4)]);
                }
            }
            assert_int_equal(dev->attend(dev, NULL, &f.args), KVF_OK);
            for (uint32_t r = 0; r < n; r++)
                assert_memory_equal(out + r * f.args.out_stride, f.out + r * f.args.out_stride, 64 * sizeof *out);
            assert_memory_equal(lse, f.lse, n * sizeof *lse);
            fixture_fini(&f);
        }
    }
}

/* A token that some rows see and others do not, with a value that would poison those others. */
static void a_token_that_a_neighbour_sees_does_not_matter(void **state)
{
    EACH_TABLE(dev) {
        for (int i = 0; i < N_DTYPES; i++) {
            struct fixture f;
            size_t at;
            fixture_init(&f, dtypes[i], 4, 16, 64, 64, 6);
            for (uint32_t r = 0; r < 6; r++)
                f.visible[r] = 50 + r;
            for (int v = 0; v < 2; v++) {
                void *p = fixture_place(&f, 52, v, &at);
                element_set(p, dtypes[i], at + 3, INFINITY);
            }
            assert_int_equal(dev->attend(dev, NULL, &f.args), KVF_OK);
            for (uint32_t r = 0; r < 6; r++) {
                bool finite = true;
                for (uint32_t d = 0; d < 64; d++)
                    finite = finite && isfinite(f.out[r * f.args.out_stride + d]);
                assert_true(finite == (r < 3));
            }
            for (uint32_t r = 0; r < 3; r++)
                check_row_alone(dev, &f, r);
            fixture_fini(&f);
        }
    }
}

static void merging_a_row_alone_equals_merging_many(void **state)
{
    enum { ROWS = 37, DIM = 72, PARTS = 20 };
    static float outs[PARTS][ROWS * DIM], lses[PARTS][ROWS], out[ROWS * DIM], lse[ROWS];
    EACH_TABLE(dev) {
        for (uint32_t n = 1; n <= PARTS; n++) {
            const float *all[PARTS], *all_lse[PARTS], *one[PARTS], *one_lse[PARTS];
            for (uint32_t p = 0; p < n; p++) {
                for (size_t e = 0; e < ROWS * DIM; e++)
                    outs[p][e] = random_float();
                for (uint32_t r = 0; r < ROWS; r++)
                    lses[p][r] = random_below(4) ? 10 * random_float() : -INFINITY;
                all[p] = outs[p];
                all_lse[p] = lses[p];
            }
            assert_int_equal(dev->merge(dev, NULL, &(struct kvf_merge){all, all_lse, n, ROWS, DIM, DIM, out, lse}), KVF_OK);
            for (uint32_t r = 0; r < ROWS; r++) {
                float alone[DIM], alone_lse;
                for (uint32_t p = 0; p < n; p++) {
                    one[p] = outs[p] + r * DIM;
                    one_lse[p] = lses[p] + r;
                }
                assert_int_equal(dev->merge(dev, NULL, &(struct kvf_merge){one, one_lse, n, 1, DIM, 0, alone, &alone_lse}), KVF_OK);
                assert_memory_equal(alone, out + r * DIM, sizeof alone);
                assert_memory_equal(&alone_lse, lse + r, sizeof alone_lse);
            }
            /* In place over part 0. */
            assert_int_equal(dev->merge(dev, NULL, &(struct kvf_merge){all, all_lse, n, ROWS, DIM, DIM, outs[0], lses[0]}), KVF_OK);
            assert_memory_equal(outs[0], out, sizeof out);
            assert_memory_equal(lses[0], lse, sizeof lse);
        }
    }
}

/* With one part that counts, merge hands it through: a session of one block has attend's own bits. */
static void one_part_passes_through(void **state)
{
    EACH_TABLE(dev) {
        float part[64], none[64] = {0}, out[64], lse[] = {3.7f}, lse_none[] = {-INFINITY}, got;
        for (int d = 0; d < 64; d++)
            part[d] = random_float();
        const float *outs[] = {none, part, none}, *lses[] = {lse_none, lse, lse_none};
        assert_int_equal(dev->merge(dev, NULL, &(struct kvf_merge){outs, lses, 3, 1, 64, 64, out, &got}), KVF_OK);
        assert_memory_equal(out, part, sizeof out);
        assert_true(got == lse[0]);
    }
}

int main(void)
{
    print_message("seed %llu\n", (unsigned long long)SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_row_alone_equals_the_row_among_384),
        cmocka_unit_test(the_number_of_rows_does_not_matter),
        cmocka_unit_test(addresses_and_chunk_size_do_not_matter),
        cmocka_unit_test(unseen_tokens_do_not_matter),
        cmocka_unit_test(a_token_that_a_neighbour_sees_does_not_matter),
        cmocka_unit_test(merging_a_row_alone_equals_merging_many),
        cmocka_unit_test(one_part_passes_through),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
