/* KVF_SETTING(type, field, name, default, min, max, words, help). min and max count for SIZE, TIME, COUNT (0, 0 for the
 * rest); words is "a|b|c" for LIST. Included several times: no guard. */
KVF_SETTING(TEXT, node_name, "node.name", "", 0, 0, "",
    "The node's stable name, unique in the cluster: letters, digits, . _ -. Empty: the host's name.")
KVF_SETTING(SIZE, dram_bytes, "dram.bytes", "256M", 1 << 20, 1ull << 43, "",
    "DRAM arena for this node's own blocks.")
KVF_SETTING(LIST, dram_policy, "dram.policy", "s3fifo", 0, 0, "lru|lfu|s3fifo|arc",
    "Which opaque block leaves DRAM first when room is short: down to a lender or the SSD, or dropped where nothing takes it.")
KVF_SETTING(SIZE, lend_bytes, "lend.bytes", "0", 0, 1ull << 42, "",
    "DRAM beside it that is lent to other nodes' sessions. 0: this node lends nothing.")
KVF_SETTING(BOOL, borrow, "lend.borrow", "true", 0, 0, "",
    "Whether this node's blocks may go to lenders before they go to SSD.")
KVF_SETTING(TIME, lend_reclaim_ns, "lend.reclaim_within", "5s", 100000000, 600000000000, "",
    "How long borrowers have to move their blocks when this node wants lent memory back; then it takes it.")
KVF_SETTING(COUNT, lend_reclaim_above, "lend.reclaim_above", "10", 0, 10000, "",
    "Percent of dram.bytes: when within 10 s so much of this node's own blocks leaves full DRAM, or is read from below it, lent "
    "memory comes back and holds them, an eighth of lend.bytes or more at a time. 0: never by itself.")
KVF_SETTING(SIZE, lend_min_bytes, "lend.min", "0", 0, 1ull << 42, "",
    "What others may keep of lend.bytes however short this node's own DRAM is.")
KVF_SETTING(TIME, lend_return_ns, "lend.return_after", "60s", 1000000000, 86400000000000, "",
    "When own DRAM has sufficed for so long, others may have an eighth of lend.bytes more again. The wait doubles, up to 16 times, "
    "while that turns out to be too early.")
KVF_SETTING(TIME, lend_keep_dead_ns, "lend.keep_dead", "60s", 0, 86400000000000, "",
    "How long blocks of a borrower that etcd no longer lists are kept for whoever takes its sessions over. Room that is wanted "
    "ends it earlier.")
KVF_SETTING(SIZE, gpu_bytes, "gpu.bytes", "0", 0, 1ull << 39, "",
    "Device cache: chunks that attention under a budget selected lately, whatever tier their blocks lie in. In this version it is "
    "host memory, as attention is computed on the CPU. 0: none.")
KVF_SETTING(LIST, gpu_policy, "gpu.policy", "blend", 0, 0, "lru|lfu|window|score|blend",
    "Which chunk leaves a full device cache: the one used longest ago, least often, not in the last steps, with the lowest score "
    "now, or by score and use together.")
KVF_SETTING(SIZE, staging_bytes, "fetch.staging", "32M", 1 << 20, 1ull << 40, "",
    "Memory for cold blocks on their way to attention; bounds how far reads run ahead.")
KVF_SETTING(TIME, memory_budget_ns, "memory.start_budget", "2s", 0, 3600000000000, "",
    "Time after which a starting node serves with the memory that is ready by then; the rest follows in the background.")
KVF_SETTING(SIZE, memory_piece_bytes, "memory.piece", "256M", 2 << 20, 1 << 30, "",
    "Memory is made ready (touched, registered with network, GPU and disk) in pieces of this size.")
KVF_SETTING(COUNT, memory_threads, "memory.threads", "0", 0, 64, "",
    "Threads that touch memory at the start. 0: one per CPU, four at most.")
KVF_SETTING(LIST, memory_huge, "memory.huge", "auto", 0, 0, "auto|off|2M|1G",
    "Huge pages. auto, 2M: of the machine's reserve (vm.nr_hugepages), else transparent ones; 1G: likewise, of 1 GiB. off: none.")
KVF_SETTING(TEXT, memory_numa, "memory.numa", "auto", 0, 0, "",
    "NUMA nodes of the memory: auto (near fabric.interface, else all in turn), off, interleave, or a list: 0,2-3.")
KVF_SETTING(TIME, fetch_timeout_ns, "fetch.timeout", "10s", 1000000, 3600000000000, "",
    "Deadline of a read when the caller gives none.")
KVF_SETTING(COUNT, prefetch_layers, "fetch.prefetch_layers", "2", 0, 64, "",
    "Layers whose cold blocks are read ahead while one is computed.")
KVF_SETTING(LIST, attend_remote, "attend.remote", "auto", 0, 0, "off|auto|always",
    "Attention over chunks at a lender or an old home: pull them (off), send the queries there where that is measured to be "
    "faster (auto), or wherever it can be (always).")
KVF_SETTING(LIST, attend_parts, "attend.parts", "block", 0, 0, "block|merged",
    "What such an answer holds. block: a result for every block, merged here in their order; only nodes whose kernels compute the "
    "same bits are asked, so results have the same bits as without. merged: one for all of a message; fewer bytes, any node, "
    "results equal within the kernels' error bound.")
KVF_SETTING(COUNT, attend_serve, "attend.serve", "8", 0, 64, "",
    "Questions of other nodes that this one attends at a time, half of them for one node. 0: it attends for nobody.")
KVF_SETTING(SIZE, block_bytes_max, "block.bytes_max", "1M", 4096, 16 << 20, "",
    "Largest block that is accepted, of sessions and of put.")
KVF_SETTING(COUNT, blocks_max, "block.count_max", "1000000", 1024, 60000000, "",
    "Blocks that the index can hold, over all tiers. About 46 bytes of memory each, and 8 for each of their chunks.")
KVF_SETTING(COUNT, sessions_max, "session.count_max", "1024", 1, 1 << 20, "",
    "Sessions that may have their home here.")
KVF_SETTING(LIST, cold_format, "cold.format", "exact", 0, 0, "exact|int8|fp8",
    "How K and V of sessions lie below DRAM. int8, fp8: 8 bits an element with scales; attention then differs a little.")
KVF_SETTING(TEXT, ssd_path, "ssd.path", "", 0, 0, "",
    "Directory of the SSD area (the file is kvf.area). Empty: no SSD tier.")
KVF_SETTING(SIZE, ssd_bytes, "ssd.bytes", "1G", 1 << 20, 1ull << 43, "",
    "Size of the SSD area.")
KVF_SETTING(BOOL, ssd_required, "ssd.required", "false", 0, 0, "",
    "Whether a node refuses to start when its SSD area cannot be used. false: it starts without it, and kvf status says why.")
KVF_SETTING(LIST, ssd_engine, "ssd.engine", "auto", 0, 0, "auto|uring|posix",
    "How the SSD is read: io_uring, or POSIX calls in threads. auto: io_uring where the kernel allows it.")
KVF_SETTING(COUNT, ssd_depth, "ssd.depth", "64", 1, 4096, "",
    "Reads and writes that the SSD is given at once.")
KVF_SETTING(SIZE, scrub_rate, "ssd.scrub_rate", "8M", 0, 1ull << 40, "",
    "Bytes per second at which blocks on the SSD are read and checked, behind everything else. 0: never.")
KVF_SETTING(SIZE, down_budget, "move.down_budget", "0", 0, 1ull << 50, "",
    "Bytes per second for blocks on their way down, to lenders and SSD. Who waits for room in DRAM exceeds it. 0: no limit.")
KVF_SETTING(SIZE, up_budget, "move.up_budget", "0", 0, 1ull << 50, "",
    "Bytes per second for blocks on their way back up to DRAM; what attention asks for is not counted. 0: no limit.")
KVF_SETTING(TEXT, secret_file, "cluster.secret_file", "", 0, 0, "",
    "File (mode 0600) with the cluster's secret, or two, one per line: the first is proved, both are accepted; read again when it "
    "changes. Empty: none, and peers on loopback only. See docs/SECURITY.md.")
KVF_SETTING(LIST, fabric_transport, "fabric.transport", "auto", 0, 0, "auto|tcp|shm|rdma|none",
    "How peers are reached. auto: shared memory on the same host, RDMA where there is a NIC, else TCP. none: no peers.")
KVF_SETTING(TEXT, fabric_interface, "fabric.interface", "lo", 0, 0, "",
    "Network devices to use, as UCX names them (lo, eth0, mlx5_0:1), with commas; 'all' for every one. Others than lo need "
    "cluster.secret_file.")
KVF_SETTING(TEXT, fabric_gid, "fabric.gid", "auto", 0, 0, "",
    "RDMA over Ethernet: which entry of the device's table of GIDs (`ibv_devinfo -v`) to use. auto: its first IPv4 address.")
KVF_SETTING(SIZE, fabric_segment, "fabric.segment", "256k", 8192, 4 << 20, "",
    "TCP segment of UCX. Its own default of 8k costs a factor of three.")
KVF_SETTING(SIZE, fabric_inflight, "fabric.inflight", "16M", 65536, 1ull << 32, "",
    "Bytes that are asked of one peer and not yet arrived, at most.")
KVF_SETTING(COUNT, fabric_requests, "fabric.requests", "4096", 64, 65536, "",
    "Calls and reads under way to all peers, at most. Each keeps about 10 KiB of memory from the start on.")
KVF_SETTING(COUNT, fabric_peers_max, "fabric.peers_max", "64", 1, 4096, "",
    "Peers that this node speaks with.")
KVF_SETTING(TIME, fabric_heartbeat_ns, "fabric.heartbeat", "250ms", 10000000, 60000000000, "",
    "How often a silent peer is sent a heartbeat.")
KVF_SETTING(TIME, fabric_dead_ns, "fabric.dead_after", "2s", 50000000, 600000000000, "",
    "A peer that was silent so long is dead: everything asked of it fails at once.")
KVF_SETTING(TEXT, etcd_endpoints, "etcd.endpoints", "", 0, 0, "",
    "etcd's client URLs, with commas. Empty: no cluster, this node is alone.")
KVF_SETTING(TEXT, etcd_prefix, "etcd.prefix", "/kvfabric/default", 0, 0, "",
    "Prefix of every key: one per cluster.")
KVF_SETTING(TIME, etcd_timeout_ns, "etcd.timeout", "5s", 50000000, 600000000000, "",
    "Deadline of one request to etcd.")
KVF_SETTING(BOOL, etcd_required, "etcd.required", "true", 0, 0, "",
    "Whether a node refuses to start while etcd is absent. false: it starts alone and joins when etcd answers.")
KVF_SETTING(TEXT, etcd_ca, "etcd.ca", "", 0, 0, "", "CA certificate file for https endpoints.")
KVF_SETTING(TEXT, etcd_cert, "etcd.cert", "", 0, 0, "", "Client certificate file.")
KVF_SETTING(TEXT, etcd_key, "etcd.key", "", 0, 0, "", "Client key file.")
KVF_SETTING(TIME, lease_ttl_ns, "etcd.lease", "5s", 1000000000, 3600000000000, "",
    "How long etcd remembers a member that no longer answers (whole seconds).")
KVF_SETTING(TEXT, admin_listen, "admin.listen", "127.0.0.1:0", 0, 0, "",
    "Address and port of the admin interface (kvf status, /metrics). Port 0: any free one. Empty: none.")
KVF_SETTING(COUNT, workers, "workers", "1", 1, 256, "",
    "Threads that compute attention for one call, the caller's included.")
KVF_SETTING(TIME, reactor_spin_ns, "reactor.spin", "100us", 0, 1000000000, "",
    "How long the reactor polls before it sleeps, at most: a fifth of it while nothing comes so soon.")
KVF_SETTING(LIST, log_level, "log.level", "warn", 0, 0, "error|warn|info|debug",
    "What is logged, to standard error.")
