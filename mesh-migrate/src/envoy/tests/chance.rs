//! Chance, and the words it takes.

/// Numbers by chance (xorshift64*).
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end.max(1)
    }

    pub(crate) fn percent(&mut self, part: usize) -> bool {
        self.below(100) < part
    }

    pub(crate) fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

pub(crate) const TYPES: &str = "type.googleapis.com/envoy.extensions.";
pub(crate) const DOMAINS: [&str; 16] = [
    "a.example:*",
    "b.a.example:81",
    "a.example",
    "b.a.example",
    "*.example",
    "*.a.example",
    "*-x.example",
    "a.*",
    "b.a.*",
    "*",
    "users",
    "A.Example:8080",
    "*.b.a.example",
    "api.*",
    "c.example",
    "*.org",
];
pub(crate) const HOSTS: [&str; 14] = [
    "a.example",
    "A.EXAMPLE",
    "b.a.example",
    "x.b.a.example",
    "foo-x.example",
    "a.org",
    "b.a.net",
    "users",
    "a.example:8080",
    "c.example",
    "zzz",
    "api.x",
    "-x.example",
    "b.a.example:81",
];
pub(crate) const PATHS: [&str; 12] = [
    "/",
    "/a",
    "/a/",
    "/api",
    "/api/v1",
    "/A",
    "/files/42",
    "/files/x",
    "/v2/",
    "/a.b",
    "/exact",
    "/a%20b",
];
pub(crate) const REGEXES: [&str; 7] = [
    "/files/[0-9]+",
    "/a.*",
    "/(api|v2)/.*",
    "(?i)/API(/.*)?",
    ".*/v1",
    "/[[:alpha:]]+",
    r"/files/\d{2}",
];
pub(crate) const HEADERS: [&str; 4] = ["x-a", "X-Canary", "x-n", "user-agent"];
pub(crate) const VALUES: [&str; 9] =
    ["1", "abc", "ABC", "-7", "42", "x,y", "a b", "Mobile/1.0", ""];
pub(crate) const HOST_ADDRESSES: [&str; 8] = [
    "10.20.1.11",
    "10.20.1.12",
    "10.20.1.13",
    "10.20.1.21",
    "10.20.1.31",
    "10.20.2.11",
    "10.20.2.12",
    "10.20.9.1",
];
