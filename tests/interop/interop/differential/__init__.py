"""The same requests through us, Envoy and HAProxy, before the same origin.

requests.py, answers.py   what is sent, and what an application answers
client.py, origin.py      both ends, byte by byte
peers.py                  Envoy and HAProxy
compare.py                what differs, and ../../differences.toml that says why
"""
