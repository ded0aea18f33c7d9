//! What is said of statements that nothing else was said of.

use super::{Directive, Verdict, Work};

/// Blocks that only hold others.
const FRAMES: [&str; 5] = ["", "http", "stream", "events", "server"];

/// Names, and what it means that they are gone.
const DROPPED: &[(&str, &str)] = &[
    ("map", "nothing that is converted uses this map"),
    (
        "worker_processes worker_connections worker_rlimit_nofile worker_cpu_affinity \
         worker_priority worker_shutdown_timeout multi_accept use accept_mutex \
         accept_mutex_delay worker_aio_requests thread_pool pcre_jit timer_resolution \
         lock_file ssl_engine debug_points working_directory env user pid daemon \
         master_process google_perftools_profiles",
        "about processes of nginx: ours have their own",
    ),
    ("load_module", "a module of nginx: what its directives do is said where they stand"),
    (
        "sendfile tcp_nopush tcp_nodelay aio directio output_buffers postpone_output \
         open_file_cache open_file_cache_valid open_file_cache_errors \
         open_file_cache_min_uses sendfile_max_chunk lingering_close lingering_time \
         lingering_timeout reset_timedout_connection types_hash_max_size \
         types_hash_bucket_size server_names_hash_bucket_size \
         server_names_hash_max_size variables_hash_max_size variables_hash_bucket_size \
         map_hash_bucket_size map_hash_max_size proxy_headers_hash_max_size \
         proxy_headers_hash_bucket_size connection_pool_size request_pool_size \
         read_ahead proxy_socket_keepalive",
        "how nginx works inside: no request sees it",
    ),
    (
        "error_log access_log log_format log_not_found log_subrequest rewrite_log \
         open_log_file_cache",
        "requests are told of by our own access log and traces",
    ),
    (
        "types default_type etag if_modified_since root \
         alias index autoindex autoindex_exact_size autoindex_localtime try_files \
         disable_symlinks random_index dav_methods dav_access create_full_put_path flv \
         mp4 image_filter ssi",
        "about files: none are served",
    ),
    (
        "charset charset_types override_charset source_charset charset_map",
        "Content-Type of answers stays as the application writes it; texts of our own are of utf-8",
    ),
    ("expires", "no answer that is passed on or given here comes by it"),
    (
        "gzip gzip_types gzip_vary gzip_proxied gzip_comp_level gzip_min_length \
         gzip_buffers gzip_http_version gzip_disable gzip_static gunzip brotli \
         brotli_types brotli_comp_level",
        "answers are not compressed on the way: the application does it, or nobody",
    ),
    (
        "keepalive_timeout keepalive_requests keepalive_time keepalive_disable \
         client_header_timeout client_body_timeout send_timeout \
         client_header_buffer_size large_client_header_buffers \
         http2_max_concurrent_streams http2_recv_timeout http2_idle_timeout \
         resolver_timeout preread_timeout preread_buffer_size ssl_handshake_timeout",
        "clients have our own limits and times",
    ),
    ("proxy_responses proxy_requests", "UDP is not listened to"),
    ("client_max_body_size", "bodies of any length pass; nginx answers 413 beyond its limit"),
    (
        "client_body_buffer_size client_body_temp_path client_body_in_file_only \
         proxy_buffering proxy_buffers proxy_buffer_size proxy_busy_buffers_size \
         proxy_temp_path proxy_temp_file_write_size proxy_max_temp_file_size \
         proxy_request_buffering fastcgi_temp_path uwsgi_temp_path scgi_temp_path \
         proxy_limit_rate proxy_download_rate proxy_upload_rate fastcgi_buffers \
         fastcgi_buffer_size",
        "bodies stream through and are never stored",
    ),
    (
        "proxy_cookie_domain proxy_cookie_path proxy_cookie_flags",
        "cookies of answers stay as the application writes them",
    ),
    (
        "proxy_intercept_errors error_page recursive_error_pages",
        "answers of errors stay as they are: no page or other location stands in for them",
    ),
    (
        "proxy_cache proxy_cache_path proxy_cache_valid proxy_cache_key \
         proxy_cache_use_stale proxy_cache_bypass proxy_no_cache proxy_cache_lock \
         proxy_cache_methods proxy_cache_min_uses proxy_cache_revalidate \
         proxy_cache_background_update proxy_store slice fastcgi_cache_path \
         fastcgi_cache",
        "nothing is cached: every request reaches the application",
    ),
    (
        "auth_request_set auth_basic_user_file auth_jwt_key_file secure_link_md5",
        "of a directive that decides who may, which is not converted",
    ),
    ("resolver", "names are resolved by the host's own resolver"),
    (
        "sub_filter sub_filter_once sub_filter_types addition_types add_before_body \
         add_after_body",
        "bodies of answers stay as they are",
    ),
    (
        "proxy_pass_header proxy_ignore_headers proxy_ignore_client_abort \
         proxy_force_ranges proxy_headers",
        "answers pass as they are",
    ),
    ("proxy_bind", "connections to applications come from the host's own address"),
    (
        "server_tokens more_set_headers more_clear_headers \
         chunked_transfer_encoding \
         msie_padding msie_refresh max_ranges satisfy_any uninitialized_variable_warn",
        "how nginx reads requests and words its own answers: ours does it in its way",
    ),
    (
        "ssl_certificate ssl_certificate_key",
        "no listener of this server speaks TLS, or nothing leads here",
    ),
    (
        "absolute_redirect port_in_redirect server_name_in_redirect",
        "no redirect that is given here comes by it",
    ),
    ("mail imap smtp", "mail is not proxied"),
    (
        "keepalive zone least_conn ip_hash hash random",
        "nothing that is converted leads to this upstream",
    ),
    (
        "set rewrite return if proxy_pass internal limit_except listen proxy_set_header \
         add_header proxy_hide_header proxy_connect_timeout proxy_read_timeout \
         proxy_send_timeout proxy_timeout proxy_next_upstream proxy_next_upstream_tries \
         proxy_next_upstream_timeout ssl_preread",
        "no request that is passed on or answered here comes by it",
    ),
];

/// Names, what is to be asked of them, and what there is to choose from.
const DECISIONS: &[(&str, &str, &[&str])] = &[
    (
        "geo",
        "variables by the client's address are not converted: what uses one says so. Are these rules?",
        &["policies of ours by address", "none"],
    ),
    (
        "split_clients",
        "shares by a hash are not converted: what uses one says so. Is it a split of traffic?",
        &["weights of a route", "none"],
    ),
    (
        "limit_req limit_req_zone limit_conn limit_conn_zone limit_rate \
         limit_rate_after limit_req_status limit_conn_status limit_req_log_level \
         limit_conn_log_level limit_req_dry_run",
        "requests are not limited with us until a limit is written: who needs one?",
        &["a limit of ours", "none is needed"],
    ),
    (
        "allow deny",
        "who may by address: nothing that is converted comes by here",
        &["a policy of ours", "nothing is needed"],
    ),
    (
        "real_ip_header set_real_ip_from real_ip_recursive",
        "the client's address is that of the connection with us: does a balancer stand in front that names another?",
        &["the balancer is trusted by name", "no balancer stands there"],
    ),
    (
        "mirror mirror_request_body",
        "requests are not copied until a mirror is written: to whom do copies go?",
        &["a mirror of ours", "no copies are needed"],
    ),
    (
        "proxy_protocol",
        "the PROXY protocol is not spoken: who reads it there?",
        &["the application reads no PROXY protocol", "it stays with nginx"],
    ),
    (
        "ssl_verify_client ssl_client_certificate ssl_trusted_certificate \
         ssl_verify_depth ssl_crl",
        "clients' certificates: is who they are proved by a policy of ours?",
        &["by a policy of ours", "not at all"],
    ),
];

impl<'c> Work<'_, 'c> {
    /// Everything inside that is not in the ledger yet.
    pub(super) fn rest(&mut self, block: &'c Directive, parent: &str) {
        let context = if FRAMES.contains(&block.name.as_str()) && parent != "upstream" {
            ""
        } else {
            match block.name.as_str() {
                "location" if block.all("internal").next().is_some() => "internal",
                name => name,
            }
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

/// Where nothing leads that is converted.
const INTERNAL: &str = "X-Accel-Redirect of an application may lead here with nginx: our proxy does not follow it, and clients get what the application answers itself";

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
        ("internal", "proxy_pass" | "proxy_set_header" | "alias" | "root") => dropped(INTERNAL),
        ("location" | "if" | "limit_except", "proxy_pass") => {
            dropped("nothing leads here: what comes before it answers every request")
        }
        ("upstream", "server") => dropped("nothing that is converted leads to this upstream"),
        (_, name) => of_name(directive, name),
    }
}

/// Beginnings of names, the first that fits, and what it means that they are gone.
const FAMILIES: &[(&str, &str)] = &[
    ("proxy_ssl_", "TLS to applications is of version 1.2 or 1.3 with our own ciphers"),
    ("ssl_", "TLS of listeners is of version 1.2 or 1.3 with our own ciphers"),
    ("fastcgi_", "this protocol is not spoken to applications"),
    ("uwsgi_", "this protocol is not spoken to applications"),
    ("scgi_", "this protocol is not spoken to applications"),
    ("grpc_", "this protocol is not spoken to applications"),
    ("memcached_", "this protocol is not spoken to applications"),
];

fn of_name(directive: &Directive, name: &str) -> Verdict {
    let is = |value: &str| directive.arg(0) == value;
    let has = |names: &str| names.split(' ').any(|known| known == name);
    match name {
        "http" | "stream" | "events" | "server" | "location" | "upstream" | "server_name"
        | "break" | "ssl" | "http2" => return Verdict::Exact,
        "proxy_redirect" if is("off") => return Verdict::Exact,
        "proxy_redirect" => {
            return dropped("Location and Refresh of answers stay as the application writes them");
        }
        "proxy_http_version" => {
            let how = "HTTP/1.1 with kept connections, or HTTP/2, is spoken to applications";
            return Verdict::Approximated { how: how.into() };
        }
        _ => {}
    }
    if has(
        "auth_request auth_basic auth_jwt satisfy access_by_lua_block access_by_lua access_by_lua_file secure_link",
    ) {
        if is("off") || is("all") {
            return Verdict::Exact;
        }
        let choices = ["a policy of ours", "everybody may", "the application decides"];
        return decision(format!("{name} decides who may, which is not converted"), &choices);
    }
    if has("proxy_method proxy_set_body proxy_pass_request_body proxy_pass_request_headers") {
        if is("on") {
            return Verdict::Exact;
        }
        let question = format!(
            "{name} makes another request of this one, which is not converted: it goes on as it is"
        );
        return decision(question, &["it goes on as it is", "it stays with nginx"]);
    }
    if let Some((_, meaning)) = DROPPED.iter().find(|(names, _)| has(names)) {
        return dropped(*meaning);
    }
    if let Some((_, question, choices)) = DECISIONS.iter().find(|(names, ..)| has(names)) {
        return decision(*question, choices);
    }
    if let Some((_, meaning)) = FAMILIES.iter().find(|(begin, _)| name.starts_with(begin)) {
        return dropped(*meaning);
    }
    let is_program = name.contains("_by_lua")
        || ["lua_", "js_", "perl"].iter().any(|begin| name.starts_with(begin));
    if is_program {
        let question = format!(
            "{name} is a program or belongs to one, which is not converted: what does it do to requests?"
        );
        return decision(
            question,
            &["a route or a policy of ours", "the application does it", "nothing that matters"],
        );
    }
    let question =
        format!("{name} is not known here: does it change where requests go, or what they are?");
    decision(
        question,
        &["it does not", "a route or a policy of ours does it", "it stays with nginx"],
    )
}
