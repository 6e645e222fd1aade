/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long what proved a tunnel's ends is good: until the first certificate of the peer's chain expires (as client, our
 * own too), or until its root is no longer one of ours.
 *
 * A tunnel whose proof has lapsed takes no new streams: it is drained as for any other reason. What is open has
 * `expired_drain_ms` to end, then it is cut: a stream may outlive the handshake, but not for ever.
 */
#ifndef CULVERT_PROOF_H
#define CULVERT_PROOF_H

struct cv_tunnel;

void cv_proof_init(struct cv_tunnel *tunnel);
void cv_proof_begin(struct cv_tunnel *tunnel); /* the handshake is done */
void cv_proof_end(struct cv_tunnel *tunnel);   /* the tunnel is over; may be called again */
void cv_proof_renew(struct cv_tunnel *tunnel); /* the pod's identity was replaced, perhaps with other roots */

#endif
