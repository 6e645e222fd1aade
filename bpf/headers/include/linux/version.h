/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC asks for a version to choose among old kprobe variants; network programs do not depend on it. */
#define KERNEL_VERSION(major, minor, patch) (((major) << 16) + ((minor) << 8) + ((patch) > 255 ? 255 : (patch)))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 0, 0)
