/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The identities of local pods: certificate, key and roots as two TLS contexts each, built once and shared.
 *
 * Writer: Python's thread. Readers: workers, which hold a reference for as long as a tunnel lives, so a replaced
 * identity stays valid for the tunnels that were made with it.
 */
#ifndef CULVERT_IDENTITY_H
#define CULVERT_IDENTITY_H
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "list.h"

enum cv_role {
	CV_ROLE_CLIENT = 0,
	CV_ROLE_SERVER = 1,
};

struct cv_identity {
	struct cv_list link;
	atomic_uint refs;
	atomic_bool replaced; /* a newer one exists, or none any more: no new streams */
	SSL_CTX *contexts[2]; /* by enum cv_role */
	size_t trust_domain;  /* length of "spiffe://<trust domain>/" in name */
	char name[];
};

struct cv_identities {
	pthread_mutex_t lock;
	struct cv_list list;
};

void cv_identities_init(struct cv_identities *identities);
void cv_identities_deinit(struct cv_identities *identities);

/* -EINVAL: not a SPIFFE id, PEM that does not parse, or a key that is not the certificate's. */
int cv_identities_put(struct cv_identities *identities, const char *name, const char *chain_pem, const char *key_pem,
		      const char *roots_pem);
int cv_identities_remove(struct cv_identities *identities, const char *name); /* -ENOENT */

struct cv_identity *cv_identity_acquire(struct cv_identities *identities, const char *name); /* NULL: unknown */
void cv_identity_release(struct cv_identity *identity);                                      /* takes NULL */

/* Length of "spiffe://<trust domain>/" when the text is a SPIFFE id of the mesh's form, else 0. */
size_t cv_identity_trust_domain(const char *text, size_t length);

#endif
