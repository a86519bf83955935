# Varnish: the secret in VCL, answers in memory.
vcl 4.1;
backend default { .host = "127.0.0.1"; .port = "@RAILS@"; }
sub vcl_recv {
  if (req.http.Gitlab-Shared-Secret != "@SECRET@") { return (synth(401)); }
  if (req.method == "GET" && req.url ~ "^/api/v4/internal/(authorized_keys\?|discover\?|check$)") {
    return (hash);
  }
  return (pass);
}
sub vcl_hash { hash_data(req.url); return (lookup); }
sub vcl_backend_response {
  if (bereq.url ~ "^/api/v4/internal/(authorized_keys\?|discover\?|check$)" && beresp.status == 200) {
    unset beresp.http.Vary;
    set beresp.ttl = 3600s;
    set beresp.uncacheable = false;
  } else {
    set beresp.do_stream = true;
  }
  return (deliver);
}
