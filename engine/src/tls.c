/* SPDX-License-Identifier: Apache-2.0 */
/*
 * OpenSSL between a span of ciphertext and a queue of ciphertext.
 *
 * Plaintext is gathered into records of 16 KiB: a run of small frames, of whichever streams, becomes one record, and
 * a large frame is encrypted from the buffer it was read into, but for what fills the record before it.
 */
#include "tls.h"

#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <pthread.h>
#include <string.h>

#include "tunnel.h"

static const unsigned char alpn_h2[] = {2, 'h', '2'};
static pthread_once_t once = PTHREAD_ONCE_INIT;
static BIO_METHOD *method;

static int bio_read(BIO *bio, char *to, int size)
{
	struct cv_tunnel *tunnel = BIO_get_data(bio);
	size_t n = tunnel->in_length < (size_t)size ? tunnel->in_length : (size_t)size;

	BIO_clear_retry_flags(bio);
	if (!n) {
		BIO_set_retry_read(bio);
		return -1;
	}
	memcpy(to, tunnel->in, n);
	tunnel->in += n;
	tunnel->in_length -= n;
	return (int)n;
}

static int bio_write(BIO *bio, const char *from, int size)
{
	struct cv_tunnel *tunnel = BIO_get_data(bio);
	size_t held = tunnel->out.held;
	int error = cv_queue_copy(&tunnel->out, &tunnel->worker->bufs, (const uint8_t *)from, (size_t)size);

	BIO_clear_retry_flags(bio);
	cv_figure_add(&tunnel->worker->figures.bytes_buffered, (int64_t)(tunnel->out.held - held));
	return error ? -1 : size;
}

static long bio_control(BIO *bio, int command, long number, void *pointer)
{
	(void)bio;
	(void)number;
	(void)pointer;
	return command == BIO_CTRL_FLUSH;
}

static void create_method(void)
{
	method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "culvert tunnel");
	if (!method)
		return;
	BIO_meth_set_read(method, bio_read);
	BIO_meth_set_write(method, bio_write);
	BIO_meth_set_ctrl(method, bio_control);
}

/* A client that offers ALPN must offer h2; one that offers none is taken at its word on port 15008. */
static int select_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_length, const unsigned char *in,
		       unsigned int in_length, void *unused)
{
	(void)ssl;
	(void)unused;
	if (SSL_select_next_proto((unsigned char **)out, out_length, alpn_h2, sizeof(alpn_h2), in, in_length) !=
	    OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	return SSL_TLSEXT_ERR_OK;
}

int cv_tls_configure(SSL_CTX *context, enum cv_role role)
{
	if (SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
	    SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) != 1 ||
	    SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384") != 1 ||
	    SSL_CTX_set1_groups_list(context, "X25519:P-256:P-384") != 1)
		return -EINVAL;
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_num_tickets(context, 0);
	SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION | SSL_OP_IGNORE_UNEXPECTED_EOF);
	SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	SSL_CTX_set_cert_verify_callback(context, cv_verify_peer, NULL);
	if (role == CV_ROLE_SERVER)
		SSL_CTX_set_alpn_select_cb(context, select_alpn, NULL);
	else if (SSL_CTX_set_alpn_protos(context, alpn_h2, sizeof(alpn_h2)))
		return -ENOMEM;
	return 0;
}

int cv_tls_init(struct cv_tunnel *tunnel)
{
	SSL *ssl = SSL_new(tunnel->identity->contexts[tunnel->role]);
	BIO *bio;

	pthread_once(&once, create_method);
	bio = ssl && method ? BIO_new(method) : NULL;
	if (!bio) {
		SSL_free(ssl);
		return -ENOMEM;
	}
	BIO_set_data(bio, tunnel);
	BIO_set_init(bio, 1);
	SSL_set_bio(ssl, bio, bio);
	SSL_set_app_data(ssl, tunnel);
	if (tunnel->role == CV_ROLE_SERVER)
		SSL_set_accept_state(ssl);
	else
		SSL_set_connect_state(ssl);
	tunnel->ssl = ssl;
	return 0;
}

void cv_tls_deinit(struct cv_tunnel *tunnel)
{
	SSL_free(tunnel->ssl);
	tunnel->ssl = NULL;
}

static bool speaks_h2(const struct cv_tunnel *tunnel)
{
	const unsigned char *protocol;
	unsigned int length;

	SSL_get0_alpn_selected(tunnel->ssl, &protocol, &length);
	if (!length)
		return tunnel->role == CV_ROLE_SERVER;
	return length == 2 && !memcmp(protocol, "h2", 2);
}

enum cv_tls_progress cv_tls_handshake(struct cv_tunnel *tunnel)
{
	int done;

	ERR_clear_error();
	done = SSL_do_handshake(tunnel->ssl);
	if (done == 1)
		return speaks_h2(tunnel) ? CV_TLS_DONE : CV_TLS_FAILED;
	return SSL_get_error(tunnel->ssl, done) == SSL_ERROR_WANT_READ ? CV_TLS_MORE : CV_TLS_FAILED;
}

ssize_t cv_tls_read(struct cv_tunnel *tunnel, uint8_t *to, size_t size)
{
	int n;

	ERR_clear_error();
	n = SSL_read(tunnel->ssl, to, (int)size);
	if (n > 0)
		return n;
	switch (SSL_get_error(tunnel->ssl, n)) {
	case SSL_ERROR_WANT_READ:
		return 0;
	case SSL_ERROR_ZERO_RETURN:
		tunnel->closed_cleanly = true;
		return -1;
	default:
		return -1;
	}
}

static int write_now(struct cv_tunnel *tunnel, const uint8_t *bytes, size_t length)
{
	ERR_clear_error();
	/* The queue takes everything, so a write is whole or has failed. */
	return SSL_write(tunnel->ssl, bytes, (int)length) == (int)length ? 0 : -ENOMEM;
}

int cv_tls_flush(struct cv_tunnel *tunnel)
{
	size_t staged = tunnel->staged;

	tunnel->staged = 0;
	return staged ? write_now(tunnel, tunnel->worker->record, staged) : 0;
}

static void stage(struct cv_tunnel *tunnel, const uint8_t *bytes, size_t length)
{
	memcpy(tunnel->worker->record + tunnel->staged, bytes, length);
	tunnel->staged += length;
}

int cv_tls_write(struct cv_tunnel *tunnel, const uint8_t *bytes, size_t length)
{
	int error = 0;

	if (tunnel->staged) {
		size_t room = CV_RECORD - tunnel->staged;
		size_t n = length < room ? length : room;

		stage(tunnel, bytes, n);
		bytes += n;
		length -= n;
		if (tunnel->staged == CV_RECORD)
			error = cv_tls_flush(tunnel);
	}
	if (!error && length >= CV_RECORD) {
		size_t n = length - length % CV_RECORD;

		error = write_now(tunnel, bytes, n);
		bytes += n;
		length -= n;
	}
	if (!error && length)
		stage(tunnel, bytes, length);
	return error;
}

void cv_tls_goodbye(struct cv_tunnel *tunnel)
{
	ERR_clear_error();
	if (tunnel->ssl && SSL_is_init_finished(tunnel->ssl))
		(void)SSL_shutdown(tunnel->ssl);
}

enum cv_reason cv_tls_reason(const struct cv_tunnel *tunnel, const char **detail)
{
	unsigned long error = ERR_peek_error();
	const char *text = ERR_reason_error_string(error);

	if (tunnel->verdict != CV_REASON_OK) {
		*detail = tunnel->verify_detail;
		return tunnel->verdict;
	}
	*detail = text ? text : "the handshake broke off";
	return CV_REASON_TLS_FAILED;
}
