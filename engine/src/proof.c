/* SPDX-License-Identifier: Apache-2.0 */
/* Certificates tell wall-clock time, which may be set: a timer looks again at least every RECHECK_MS. */
#include "proof.h"

#include <openssl/x509_vfy.h>
#include <time.h>

#include "engine.h"
#include "tunnel.h"

enum { RECHECK_MS = 60 * 1000 };

static int64_t wall_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* A time that cannot be read is one that has passed. */
static int64_t expiry_ms(const X509 *certificate)
{
	struct tm time;

	return certificate && ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &time) == 1
		       ? (int64_t)timegm(&time) * 1000
		       : 0;
}

static int64_t first_expiry_ms(const struct cv_tunnel *tunnel)
{
	STACK_OF(X509) *chain = SSL_get0_verified_chain(tunnel->ssl);
	int64_t first = tunnel->role == CV_ROLE_CLIENT ? expiry_ms(SSL_get_certificate(tunnel->ssl)) : INT64_MAX;

	if (!chain)
		return 0;
	for (int i = 0; i < sk_X509_num(chain); i++) {
		int64_t expiry = expiry_ms(sk_X509_value(chain, i));

		if (expiry < first)
			first = expiry;
	}
	return first;
}

static void arm(struct cv_tunnel *tunnel, uint64_t ms)
{
	cv_timer_arm(&tunnel->worker->timers, &tunnel->proof, tunnel->worker->now_ms + ms);
}

static void lapse(struct cv_tunnel *tunnel, enum cv_reason reason, const char *detail)
{
	tunnel->lapsed = reason;
	tunnel->lapse_detail = detail;
	arm(tunnel, tunnel->worker->engine->settings.expired_drain_ms);
	cv_tunnel_drain(tunnel);
}

static void on_proof(struct cv_timer *timer)
{
	struct cv_tunnel *tunnel = cv_container(timer, struct cv_tunnel, proof);
	int64_t left = tunnel->expires_ms + tunnel->worker->engine->settings.certificate_skew_ms - wall_ms();

	if (tunnel->lapsed != CV_REASON_OK)
		cv_tunnel_fail(tunnel, tunnel->lapsed, tunnel->lapse_detail);
	else if (left > 0)
		arm(tunnel, left < RECHECK_MS ? (uint64_t)left : RECHECK_MS);
	else
		lapse(tunnel, CV_REASON_CERTIFICATE_EXPIRED, "a certificate of this tunnel has expired");
}

void cv_proof_init(struct cv_tunnel *tunnel)
{
	tunnel->proof.fire = on_proof;
}

void cv_proof_begin(struct cv_tunnel *tunnel)
{
	tunnel->expires_ms = first_expiry_ms(tunnel);
	on_proof(&tunnel->proof);
}

void cv_proof_end(struct cv_tunnel *tunnel)
{
	cv_timer_cancel(&tunnel->worker->timers, &tunnel->proof);
}

/* Does the peer's chain still lead to a root of `identity`? Its times are the timer's matter. */
static bool is_trusted(const struct cv_tunnel *tunnel, const struct cv_identity *identity)
{
	X509_STORE *roots = SSL_CTX_get_cert_store(identity->contexts[tunnel->role]);
	X509_STORE_CTX *context = X509_STORE_CTX_new();
	bool trusted = false;

	if (context && X509_STORE_CTX_init(context, roots, SSL_get0_peer_certificate(tunnel->ssl),
					   SSL_get0_verified_chain(tunnel->ssl)) == 1) {
		X509_STORE_CTX_set_default(context, tunnel->role == CV_ROLE_SERVER ? "ssl_client" : "ssl_server");
		X509_STORE_CTX_set_flags(context, X509_V_FLAG_NO_CHECK_TIME);
		trusted = X509_verify_cert(context) == 1;
	}
	X509_STORE_CTX_free(context);
	return trusted;
}

void cv_proof_renew(struct cv_tunnel *tunnel)
{
	struct cv_identity *fresh;

	if (tunnel->state != CV_TUNNEL_OPEN || tunnel->lapsed != CV_REASON_OK)
		return;
	fresh = cv_identity_acquire(&tunnel->worker->engine->identities, tunnel->seat->pod->identity);
	if (fresh && fresh != tunnel->identity && !is_trusted(tunnel, fresh))
		lapse(tunnel, CV_REASON_TLS_UNTRUSTED, "the root of the peer's certificate is no longer trusted");
	cv_identity_release(fresh);
}
