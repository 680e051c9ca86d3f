/* A real etcd for a test: one member on free loopback ports, its data in a fresh temporary directory, without fsync.
 *
 *     struct kvf_test_etcd *etcd = kvf_test_etcd_start();
 *     if (!etcd)
 *         skip();            // not installed; the reason was printed
 *     ... kvf_test_etcd_url(etcd) ...
 *     kvf_test_etcd_stop(etcd);
 *
 * etcd dies with the program that started it, whatever happens to that. One thread. */
#ifndef KVF_TESTS_SUPPORT_ETCD_H
#define KVF_TESTS_SUPPORT_ETCD_H

#include <stdbool.h>

struct kvf_test_etcd;

/* Starts one and waits until it is healthy (10 s at most). NULL: not installed, or it would not start; a line on stderr says
 * why. */
struct kvf_test_etcd *kvf_test_etcd_start(void);

/* "http://127.0.0.1:PORT". Stays the same through kill and restart. */
const char *kvf_test_etcd_url(const struct kvf_test_etcd *etcd);

/* SIGKILL, and waits for its end. */
void kvf_test_etcd_kill(struct kvf_test_etcd *etcd);
/* Starts it again on the same ports and data, and waits until it is healthy. False: it would not. */
bool kvf_test_etcd_restart(struct kvf_test_etcd *etcd);
/* SIGSTOP (and waits until it stands still) and SIGCONT: an etcd that hangs with its connections open. */
void kvf_test_etcd_pause(struct kvf_test_etcd *etcd, bool paused);

/* Kills it if it runs and removes its directory. NULL is fine. */
void kvf_test_etcd_stop(struct kvf_test_etcd *etcd);
#endif
