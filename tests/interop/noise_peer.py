#!/usr/bin/env python3
"""An independent Noise peer (PyPI `noiseprotocol`, on OpenSSL) for tests/tests/all/interop.rs.

    noise_peer.py PATTERN ROLE OWN_STATIC REMOTE_STATIC EPHEMERAL PSK PROLOGUE    (hex, or - for none)

Reads `read HEX` and `write HEX` during the handshake, `seal HEX` and `open HEX` after it, and `hash`
at any time; answers each with one line of hex.
"""

import sys

from noise.connection import Keypair, NoiseConnection


def main():
    pattern, role, own, remote, ephemeral, psk, prologue = sys.argv[1:8]
    noise = NoiseConnection.from_name(f"Noise_{pattern}_25519_AESGCM_SHA256".encode())
    if role == "initiator":
        noise.set_as_initiator()
    else:
        noise.set_as_responder()
    noise.set_prologue(bytes.fromhex(prologue))
    noise.set_psks(bytes.fromhex(psk))
    if own != "-":
        noise.set_keypair_from_private_bytes(Keypair.STATIC, bytes.fromhex(own))
    if remote != "-":
        noise.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, bytes.fromhex(remote))
    if ephemeral != "-":
        noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, bytes.fromhex(ephemeral))
    noise.start_handshake()
    for line in sys.stdin:
        verb, _, value = line.strip().partition(" ")
        data = bytes.fromhex(value)
        if verb == "read":
            print(noise.read_message(data).hex())
        elif verb == "write":
            print(noise.write_message(data).hex())
        elif verb == "seal":
            print(noise.encrypt(data).hex())
        elif verb == "open":
            print(noise.decrypt(data).hex())
        elif verb == "hash":
            print(noise.get_handshake_hash().hex())
        sys.stdout.flush()


main()
