/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Builds and keeps the TLS contexts of local identities.
 *
 * TLS 1.3 only, AES-GCM only, ALPN h2, a certificate from both ends. Session resumption is off: a resumed handshake
 * skips the peer's chain, so a revoked root or an expired leaf would live on in tickets; tunnels are pooled, so a full
 * handshake is rare enough. How a peer is judged stands in verify.c.
 */
#include "identity.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>

#include "tls.h"

static void free_bio(BIO **bio)
{
	BIO_free(*bio);
}

static void free_x509(X509 **certificate)
{
	X509_free(*certificate);
}

static void free_key(EVP_PKEY **key)
{
	EVP_PKEY_free(*key);
}

/* A parse that stopped because the input ended leaves PEM_R_NO_START_LINE; anything else is damage. */
static bool at_end_of_pem(void)
{
	unsigned long error = ERR_peek_last_error();

	ERR_clear_error();
	return ERR_GET_LIB(error) == ERR_LIB_PEM && ERR_GET_REASON(error) == PEM_R_NO_START_LINE;
}

static int use_chain(SSL_CTX *context, const char *pem)
{
	BIO *bio __attribute__((cleanup(free_bio))) = BIO_new_mem_buf(pem, -1);
	X509 *leaf __attribute__((cleanup(free_x509))) = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
	X509 *issuer;

	if (!leaf || SSL_CTX_use_certificate(context, leaf) != 1)
		return -EINVAL;
	while ((issuer = PEM_read_bio_X509(bio, NULL, NULL, NULL))) {
		if (SSL_CTX_add0_chain_cert(context, issuer) != 1) {
			X509_free(issuer);
			return -ENOMEM;
		}
	}
	return at_end_of_pem() ? 0 : -EINVAL;
}

static int use_key(SSL_CTX *context, const char *pem)
{
	BIO *bio __attribute__((cleanup(free_bio))) = BIO_new_mem_buf(pem, -1);
	EVP_PKEY *key __attribute__((cleanup(free_key))) = bio ? PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL) : NULL;

	if (!key || SSL_CTX_use_PrivateKey(context, key) != 1 || SSL_CTX_check_private_key(context) != 1)
		return -EINVAL;
	return 0;
}

static int use_roots(SSL_CTX *context, const char *pem)
{
	BIO *bio __attribute__((cleanup(free_bio))) = BIO_new_mem_buf(pem, -1);
	X509_STORE *store = SSL_CTX_get_cert_store(context);
	int count = 0;

	for (;;) {
		X509 *root __attribute__((cleanup(free_x509))) = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;

		if (!root)
			break;
		if (X509_STORE_add_cert(store, root) != 1)
			return -EINVAL;
		count++;
	}
	return at_end_of_pem() && count ? 0 : -EINVAL;
}

static int create_context(enum cv_role role, const char *chain, const char *key, const char *roots, SSL_CTX **ret)
{
	SSL_CTX *context = SSL_CTX_new(role == CV_ROLE_SERVER ? TLS_server_method() : TLS_client_method());
	int error;

	if (!context)
		return -ENOMEM;
	error = cv_tls_configure(context, role);
	if (!error)
		error = use_chain(context, chain);
	if (!error)
		error = use_key(context, key);
	if (!error)
		error = use_roots(context, roots);
	if (error)
		SSL_CTX_free(context);
	else
		*ret = context;
	ERR_clear_error();
	return error;
}

void cv_identities_init(struct cv_identities *identities)
{
	pthread_mutex_init(&identities->lock, NULL);
	cv_list_init(&identities->list);
}

static void retire(struct cv_identity *identity)
{
	cv_list_remove(&identity->link);
	atomic_store(&identity->replaced, true);
	cv_identity_release(identity);
}

void cv_identities_deinit(struct cv_identities *identities)
{
	cv_list_each_safe (entry, &identities->list)
		retire(cv_container(entry, struct cv_identity, link));
	pthread_mutex_destroy(&identities->lock);
}

/* Under the lock. */
static struct cv_identity *find(struct cv_identities *identities, const char *name)
{
	cv_list_each (entry, &identities->list) {
		struct cv_identity *identity = cv_container(entry, struct cv_identity, link);

		if (!strcmp(identity->name, name))
			return identity;
	}
	return NULL;
}

static struct cv_identity *create(const char *name)
{
	size_t length = strlen(name);
	struct cv_identity *identity = calloc(1, sizeof(*identity) + length + 1);

	if (identity) {
		atomic_init(&identity->refs, 1);
		cv_list_init(&identity->link);
		memcpy(identity->name, name, length);
		identity->trust_domain = cv_identity_trust_domain(name, length);
	}
	return identity;
}

int cv_identities_put(struct cv_identities *identities, const char *name, const char *chain_pem, const char *key_pem,
		      const char *roots_pem)
{
	struct cv_identity *identity = create(name);
	struct cv_identity *old;
	int error;

	if (!identity)
		return -ENOMEM;
	error = identity->trust_domain ? 0 : -EINVAL;
	for (int role = 0; role < 2 && !error; role++)
		error = create_context(role, chain_pem, key_pem, roots_pem, &identity->contexts[role]);
	if (error) {
		cv_identity_release(identity);
		return error;
	}
	pthread_mutex_lock(&identities->lock);
	old = find(identities, name);
	if (old)
		retire(old);
	cv_list_append(&identities->list, &identity->link);
	pthread_mutex_unlock(&identities->lock);
	return 0;
}

int cv_identities_remove(struct cv_identities *identities, const char *name)
{
	struct cv_identity *old;

	pthread_mutex_lock(&identities->lock);
	old = find(identities, name);
	if (old)
		retire(old);
	pthread_mutex_unlock(&identities->lock);
	return old ? 0 : -ENOENT;
}

struct cv_identity *cv_identity_acquire(struct cv_identities *identities, const char *name)
{
	struct cv_identity *identity;

	pthread_mutex_lock(&identities->lock);
	identity = find(identities, name);
	if (identity)
		atomic_fetch_add(&identity->refs, 1);
	pthread_mutex_unlock(&identities->lock);
	return identity;
}

void cv_identity_release(struct cv_identity *identity)
{
	if (!identity || atomic_fetch_sub(&identity->refs, 1) != 1)
		return;
	SSL_CTX_free(identity->contexts[0]);
	SSL_CTX_free(identity->contexts[1]);
	free(identity);
}
