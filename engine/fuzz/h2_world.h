/* SPDX-License-Identifier: Apache-2.0 */
/* What stands around the data path in fuzz_h2.c: socket pairs for every dial, no TLS, and memory that may run out. */
#ifndef CULVERT_FUZZ_H2_WORLD_H
#define CULVERT_FUZZ_H2_WORLD_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cv_tables;

enum world_act {
	WORLD_WRITE,
	WORLD_END,
	WORLD_LEAVE,
};

struct cv_tables *world_tables(void); /* workload 1 ("w") is the pod, and every application dials a service */
int world_socket(void);               /* the engine's end of a new pair; -EMFILE */
void world_send(int fd, const uint8_t *bytes, size_t length); /* from the other end of `fd` */
void world_act(enum world_act act, uint8_t who);              /* the other end of one of the sockets */
void world_fail_allocation(long number);                      /* counted from now; -1: none */
bool world_close(void); /* all other ends; false: the engine still has a certificate of the pod */

#endif
