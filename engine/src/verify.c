/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is at the other end: the chain must lead to our roots, and the SPIFFE id in it must be one that may be there.
 *
 * As server: the first URI SAN that is a SPIFFE id is the peer's identity, and its trust domain must be ours. As
 * client: any URI SAN may be one of those the next hop is expected to show. Names other than URI SANs are ignored.
 *
 * A certificate is shown as soon as it is signed, and not every signer dates it back: what begins within the skew that
 * clocks may have has begun. What is over is over; leaves are renewed long before.
 */
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "engine.h"
#include "pool.h"
#include "tls.h"
#include "tunnel.h"

/* Not in OpenSSL's table of alerts, so the peer hears certificate_unknown. */
enum { NAMES_NOBODY = X509_V_ERR_SUBTREE_MINMAX };

static int refuse(struct cv_tunnel *tunnel, X509_STORE_CTX *store, int error, const char *detail)
{
	X509_STORE_CTX_set_error(store, error);
	tunnel->verdict = CV_REASON_TLS_UNTRUSTED;
	tunnel->verify_detail = detail;
	return 0;
}

/* A chain that leads to no root of ours was signed by another key, whatever its issuer calls itself: the peer hears
 * decrypt_error in all these cases. */
static int chain_error(int error)
{
	switch (error) {
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
	case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
	case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
	case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
		return X509_V_ERR_CERT_SIGNATURE_FAILURE;
	default:
		return error;
	}
}

/* May the peer be this one? Sets the identity when so. */
static bool accept_name(struct cv_tunnel *tunnel, const char *name, size_t length)
{
	size_t domain = cv_identity_trust_domain(name, length);
	const struct cv_identity *own = tunnel->identity;
	char copy[512];

	if (!domain || length >= sizeof(copy))
		return false;
	memcpy(copy, name, length);
	copy[length] = 0;
	if (tunnel->role == CV_ROLE_CLIENT ? !cv_pool_expects(tunnel->pool, copy)
					   : (domain != own->trust_domain || memcmp(copy, own->name, domain) != 0))
		return false;
	tunnel->peer = cv_text_create(copy);
	return tunnel->peer;
}

/* Who the peer says it is, if that is a SPIFFE id: nothing else of a stranger's certificate gets into a log. */
static void keep_shown(char *shown, size_t size, const char *text, size_t length)
{
	if (*shown || length >= size || !cv_identity_trust_domain(text, length))
		return;
	memcpy(shown, text, length);
	shown[length] = 0;
}

static bool accept_any(struct cv_tunnel *tunnel, GENERAL_NAMES *names, char *shown, size_t size)
{
	for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
		const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
		const char *text;
		size_t length;

		if (name->type != GEN_URI)
			continue;
		text = (const char *)ASN1_STRING_get0_data(name->d.uniformResourceIdentifier);
		length = (size_t)ASN1_STRING_length(name->d.uniformResourceIdentifier);
		if (accept_name(tunnel, text, length))
			return true;
		keep_shown(shown, size, text, length);
		if (tunnel->role == CV_ROLE_SERVER && *shown)
			return false; /* the first SPIFFE id is who they are */
	}
	return false;
}

static void explain(struct cv_tunnel *tunnel, const char *shown)
{
	const char *name = *shown ? shown : "no SPIFFE id";

	if (tunnel->role == CV_ROLE_SERVER)
		snprintf(tunnel->explanation, sizeof(tunnel->explanation), "not of our trust domain: the peer shows %s",
			 name);
	else
		snprintf(tunnel->explanation, sizeof(tunnel->explanation), "expected %s, the peer shows %s",
			 tunnel->pool->expected, name);
}

static struct cv_tunnel *tunnel_of(X509_STORE_CTX *store)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());

	return SSL_get_app_data(ssl);
}

/* OpenSSL's callback for each fault of a chain; 1 goes on as if there were none. */
static int forgive_skew(int ok, X509_STORE_CTX *store)
{
	time_t latest;

	if (ok || X509_STORE_CTX_get_error(store) != X509_V_ERR_CERT_NOT_YET_VALID)
		return ok;
	latest = time(NULL) + tunnel_of(store)->worker->engine->settings.certificate_skew_ms / 1000;
	if (X509_cmp_time(X509_get0_notBefore(X509_STORE_CTX_get_current_cert(store)), &latest) >= 0)
		return 0;
	X509_STORE_CTX_set_error(store, X509_V_OK);
	return 1;
}

int cv_verify_peer(X509_STORE_CTX *store, void *unused)
{
	struct cv_tunnel *tunnel = tunnel_of(store);
	GENERAL_NAMES *names;
	char shown[200] = "";
	bool accepted;

	(void)unused;
	X509_STORE_CTX_set_verify_cb(store, forgive_skew);
	if (X509_verify_cert(store) <= 0) {
		int error = X509_STORE_CTX_get_error(store);

		return refuse(tunnel, store, chain_error(error), X509_verify_cert_error_string(error));
	}
	names = X509_get_ext_d2i(X509_STORE_CTX_get0_cert(store), NID_subject_alt_name, NULL, NULL);
	accepted = names && accept_any(tunnel, names, shown, sizeof(shown));
	GENERAL_NAMES_free(names);
	if (!accepted) {
		explain(tunnel, shown);
		return refuse(tunnel, store, NAMES_NOBODY, tunnel->explanation);
	}
	return 1;
}
