//! What is said of statements that nothing else was said of.

use super::{Directive, Verdict, Work};

/// Blocks that only hold others.
const FRAMES: [&str; 5] = ["", "http", "stream", "events", "server"];

impl<'c> Work<'_, 'c> {
    /// Everything inside that is not in the ledger yet.
    pub(super) fn rest(&mut self, block: &'c Directive, parent: &str) {
        let context = if FRAMES.contains(&block.name.as_str()) && parent != "upstream" {
            ""
        } else {
            block.name.as_str()
        };
        for inner in block.inside() {
            let key = (inner.place.clone(), inner.head_last);
            let is_said = self.verdicts.contains_key(&key);
            if !is_said {
                self.say(inner, verdict(inner, context));
            }
            // A body of Lua is part of its statement.
            if inner.name.ends_with("_by_lua_block") {
                let key = (inner.place.clone(), inner.last_line);
                let said = self.verdicts.get(&(inner.place.clone(), inner.head_last)).cloned();
                self.verdicts.entry(key).or_default().extend(said.unwrap_or_default());
            }
            self.rest(inner, context);
        }
    }
}

fn dropped(meaning: impl Into<String>) -> Verdict {
    Verdict::Dropped { meaning: meaning.into() }
}

fn decision(question: impl Into<String>, choices: &[&str]) -> Verdict {
    let choices = choices.iter().map(|&choice| choice.to_owned()).collect();
    Verdict::Decision { question: question.into(), choices }
}

fn verdict(directive: &Directive, context: &str) -> Verdict {
    match (context, directive.name.as_str()) {
        ("types", _) => dropped("types of files: no files are served"),
        ("map" | "geo" | "split_clients" | "map_hash", "include") | (_, "include") => {
            Verdict::Exact
        }
        ("map", _) => dropped("nothing that is converted uses this map"),
        ("geo" | "split_clients", _) => dropped("of a block that is not converted"),
        ("location" | "if" | "limit_except", "proxy_pass") => {
            dropped("nothing leads here: what comes before it answers every request")
        }
        (context, "server") if context == "upstream" => {
            dropped("nothing that is converted leads to this upstream")
        }
        (_, name) => of_name(directive, name),
    }
}

fn of_name(directive: &Directive, name: &str) -> Verdict {
    match name {
        "http" | "stream" | "events" | "server" | "location" | "upstream" => Verdict::Exact,
        "server_name" | "break" => Verdict::Exact,
        "map" => dropped("nothing that is converted uses this map"),
        "geo" => decision(
            "variables by the client's address are not converted: what uses one says so. Are these rules?",
            &["policies of ours by address", "none"],
        ),
        "split_clients" => decision(
            "shares by a hash are not converted: what uses one says so. Is it a split of traffic?",
            &["weights of a route", "none"],
        ),
        "worker_processes"
        | "worker_connections"
        | "worker_rlimit_nofile"
        | "worker_cpu_affinity"
        | "worker_priority"
        | "worker_shutdown_timeout"
        | "multi_accept"
        | "use"
        | "accept_mutex"
        | "accept_mutex_delay"
        | "worker_aio_requests"
        | "thread_pool"
        | "pcre_jit"
        | "timer_resolution"
        | "lock_file"
        | "ssl_engine"
        | "debug_points"
        | "working_directory"
        | "env"
        | "user"
        | "pid"
        | "daemon"
        | "master_process"
        | "google_perftools_profiles" => dropped("about processes of nginx: ours have their own"),
        "load_module" => {
            dropped("a module of nginx: what its directives do is said where they stand")
        }
        "sendfile"
        | "tcp_nopush"
        | "tcp_nodelay"
        | "aio"
        | "directio"
        | "output_buffers"
        | "postpone_output"
        | "open_file_cache"
        | "open_file_cache_valid"
        | "open_file_cache_errors"
        | "open_file_cache_min_uses"
        | "sendfile_max_chunk"
        | "lingering_close"
        | "lingering_time"
        | "lingering_timeout"
        | "reset_timedout_connection"
        | "types_hash_max_size"
        | "types_hash_bucket_size"
        | "server_names_hash_bucket_size"
        | "server_names_hash_max_size"
        | "variables_hash_max_size"
        | "variables_hash_bucket_size"
        | "map_hash_bucket_size"
        | "map_hash_max_size"
        | "proxy_headers_hash_max_size"
        | "proxy_headers_hash_bucket_size"
        | "connection_pool_size"
        | "request_pool_size"
        | "read_ahead"
        | "proxy_socket_keepalive" => dropped("how nginx works inside: no request sees it"),
        "error_log"
        | "access_log"
        | "log_format"
        | "log_not_found"
        | "log_subrequest"
        | "rewrite_log"
        | "open_log_file_cache" => dropped("requests are told of by our own access log and traces"),
        "types"
        | "default_type"
        | "charset"
        | "charset_types"
        | "etag"
        | "if_modified_since"
        | "expires"
        | "root"
        | "alias"
        | "index"
        | "autoindex"
        | "autoindex_exact_size"
        | "autoindex_localtime"
        | "try_files"
        | "disable_symlinks"
        | "random_index"
        | "dav_methods"
        | "dav_access"
        | "create_full_put_path"
        | "flv"
        | "mp4"
        | "image_filter"
        | "ssi" => dropped("about files: none are served"),
        "gzip" | "gzip_types" | "gzip_vary" | "gzip_proxied" | "gzip_comp_level"
        | "gzip_min_length" | "gzip_buffers" | "gzip_http_version" | "gzip_disable"
        | "gzip_static" | "gunzip" | "brotli" | "brotli_types" | "brotli_comp_level" => {
            dropped("answers are not compressed on the way: the application does it, or nobody")
        }
        "keepalive_timeout"
        | "keepalive_requests"
        | "keepalive_time"
        | "keepalive_disable"
        | "client_header_timeout"
        | "client_body_timeout"
        | "send_timeout"
        | "client_header_buffer_size"
        | "large_client_header_buffers"
        | "http2_max_concurrent_streams"
        | "http2_recv_timeout"
        | "http2_idle_timeout"
        | "resolver_timeout"
        | "preread_timeout"
        | "preread_buffer_size"
        | "ssl_handshake_timeout" => dropped("clients have our own limits and times"),
        "client_max_body_size" => {
            dropped("bodies of any length pass; nginx answers 413 beyond its limit")
        }
        "client_body_buffer_size"
        | "client_body_temp_path"
        | "client_body_in_file_only"
        | "proxy_buffering"
        | "proxy_buffers"
        | "proxy_buffer_size"
        | "proxy_busy_buffers_size"
        | "proxy_temp_path"
        | "proxy_temp_file_write_size"
        | "proxy_max_temp_file_size"
        | "proxy_request_buffering"
        | "fastcgi_temp_path"
        | "uwsgi_temp_path"
        | "scgi_temp_path"
        | "proxy_limit_rate"
        | "proxy_download_rate"
        | "proxy_upload_rate"
        | "fastcgi_buffers"
        | "fastcgi_buffer_size" => dropped("bodies stream through and are never stored"),
        "proxy_http_version" => Verdict::Approximated {
            how: "HTTP/1.1 with kept connections, or HTTP/2, is spoken to applications".into(),
        },
        "proxy_redirect" => {
            if directive.arg(0) == "off" {
                Verdict::Exact
            } else {
                dropped("Location of answers stays as the application writes it")
            }
        }
        "proxy_cookie_domain" | "proxy_cookie_path" | "proxy_cookie_flags" => {
            dropped("cookies of answers stay as the application writes them")
        }
        "proxy_intercept_errors" | "error_page" | "recursive_error_pages" => dropped(
            "answers of errors stay as they are: no page or other location stands in for them",
        ),
        "proxy_cache"
        | "proxy_cache_path"
        | "proxy_cache_valid"
        | "proxy_cache_key"
        | "proxy_cache_use_stale"
        | "proxy_cache_bypass"
        | "proxy_no_cache"
        | "proxy_cache_lock"
        | "proxy_cache_methods"
        | "proxy_cache_min_uses"
        | "proxy_cache_revalidate"
        | "proxy_cache_background_update"
        | "proxy_store"
        | "slice"
        | "fastcgi_cache_path"
        | "fastcgi_cache" => dropped("nothing is cached: every request reaches the application"),
        "limit_req"
        | "limit_req_zone"
        | "limit_conn"
        | "limit_conn_zone"
        | "limit_rate"
        | "limit_rate_after"
        | "limit_req_status"
        | "limit_conn_status"
        | "limit_req_log_level"
        | "limit_conn_log_level"
        | "limit_req_dry_run" => decision(
            "requests are not limited with us until a limit is written: who needs one?",
            &["a limit of ours", "none is needed"],
        ),
        "auth_request"
        | "auth_basic"
        | "auth_jwt"
        | "satisfy"
        | "access_by_lua_block"
        | "access_by_lua"
        | "access_by_lua_file"
        | "secure_link" => {
            if matches!(directive.arg(0), "off" | "all") {
                Verdict::Exact
            } else {
                decision(
                    format!("{name} decides who may, which is not converted"),
                    &["a policy of ours", "everybody may", "the application decides"],
                )
            }
        }
        "auth_request_set" | "auth_basic_user_file" | "auth_jwt_key_file" | "secure_link_md5" => {
            dropped("of a directive that decides who may, which is not converted")
        }
        "allow" | "deny" => decision(
            "who may by address: nothing that is converted comes by here",
            &["a policy of ours", "nothing is needed"],
        ),
        "real_ip_header" | "set_real_ip_from" | "real_ip_recursive" => decision(
            "the client's address is that of the connection with us: does a balancer stand in front that names another?",
            &["the balancer is trusted by name", "no balancer stands there"],
        ),
        "resolver" => dropped("names are resolved by the host's own resolver"),
        "mirror" | "mirror_request_body" => decision(
            "requests are not copied until a mirror is written: to whom do copies go?",
            &["a mirror of ours", "no copies are needed"],
        ),
        "sub_filter" | "sub_filter_once" | "sub_filter_types" | "addition_types"
        | "add_before_body" | "add_after_body" => dropped("bodies of answers stay as they are"),
        "proxy_method"
        | "proxy_set_body"
        | "proxy_pass_request_body"
        | "proxy_pass_request_headers" => {
            if directive.arg(0) == "on" {
                Verdict::Exact
            } else {
                decision(
                    format!(
                        "{name} makes another request of this one, which is not converted: it goes on as it is"
                    ),
                    &["it goes on as it is", "it stays with nginx"],
                )
            }
        }
        "proxy_pass_header"
        | "proxy_ignore_headers"
        | "proxy_ignore_client_abort"
        | "proxy_force_ranges"
        | "proxy_headers" => dropped("answers pass as they are"),
        "proxy_bind" => dropped("connections to applications come from the host's own address"),
        "proxy_protocol" => decision(
            "the PROXY protocol is not spoken: who reads it there?",
            &["the application reads no PROXY protocol", "it stays with nginx"],
        ),
        "server_tokens"
        | "more_set_headers"
        | "more_clear_headers"
        | "merge_slashes"
        | "underscores_in_headers"
        | "ignore_invalid_headers"
        | "absolute_redirect"
        | "port_in_redirect"
        | "server_name_in_redirect"
        | "chunked_transfer_encoding"
        | "msie_padding"
        | "msie_refresh"
        | "max_ranges"
        | "satisfy_any"
        | "uninitialized_variable_warn" => {
            dropped("how nginx reads requests and words its own answers: ours does it in its way")
        }
        name if name.starts_with("proxy_ssl_") => {
            dropped("TLS to applications is of version 1.2 or 1.3 with our own ciphers")
        }
        "ssl_certificate" | "ssl_certificate_key" => {
            dropped("no listener of this server speaks TLS, or nothing leads here")
        }
        "ssl_verify_client"
        | "ssl_client_certificate"
        | "ssl_trusted_certificate"
        | "ssl_verify_depth"
        | "ssl_crl" => decision(
            "clients' certificates: is who they are proved by a policy of ours?",
            &["by a policy of ours", "not at all"],
        ),
        "ssl" => Verdict::Exact,
        name if name.starts_with("ssl_") => {
            dropped("TLS of listeners is of version 1.2 or 1.3 with our own ciphers")
        }
        name if name.starts_with("http2_") || name == "http2" => Verdict::Exact,
        name if name.contains("_by_lua")
            || name.starts_with("lua_")
            || name.starts_with("js_")
            || name.starts_with("perl") =>
        {
            decision(
                format!(
                    "{name} is a program or belongs to one, which is not converted: what does it do to requests?"
                ),
                &["a route or a policy of ours", "the application does it", "nothing that matters"],
            )
        }
        name if name.starts_with("fastcgi_")
            || name.starts_with("uwsgi_")
            || name.starts_with("scgi_")
            || name.starts_with("grpc_")
            || name.starts_with("memcached_") =>
        {
            dropped("this protocol is not spoken to applications")
        }
        "mail" | "imap" | "smtp" => dropped("mail is not proxied"),
        "keepalive" | "zone" | "least_conn" | "ip_hash" | "hash" | "random" => {
            dropped("nothing that is converted leads to this upstream")
        }
        "set"
        | "rewrite"
        | "return"
        | "if"
        | "proxy_pass"
        | "internal"
        | "limit_except"
        | "listen"
        | "proxy_set_header"
        | "add_header"
        | "proxy_hide_header"
        | "proxy_connect_timeout"
        | "proxy_read_timeout"
        | "proxy_send_timeout"
        | "proxy_timeout"
        | "proxy_next_upstream"
        | "proxy_next_upstream_tries"
        | "proxy_next_upstream_timeout"
        | "ssl_preread" => dropped("no request that is passed on or answered here comes by it"),
        name => decision(
            format!(
                "{name} is not known here: does it change where requests go, or what they are?"
            ),
            &["it does not", "a route or a policy of ours does it", "it stays with nginx"],
        ),
    }
}
