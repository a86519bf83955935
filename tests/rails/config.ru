# frozen_string_literal: true

require_relative 'application'

# A real GitLab takes a while to load, and does not listen meanwhile: Puma binds its sockets after this file is read.
sleep [Float(ENV.fetch('RAILS_BOOTED_AT', '0')) - Time.now.to_f, 0].max

SampleGitlab::Application.initialize!
Database.prepare

# A GitLab is loaded completely before it listens. Here, these requests load what is loaded lazily: two concurrent
# first requests may deadlock, one with Grape's lock, the other with that of an autoloaded file.
API::Root.compile!
[['GET', 'check'], ['GET', 'discover?key_id=1'], ['POST', 'allowed?key_id=1&project=gnuwget/wget2'],
 ['POST', 'pre_receive?gl_repository=project-1'], ['GET', 'kubernetes/agent_info']].each do |method, endpoint|
  secret = File.read(ENV.fetch('RAILS_SHELL_SECRET_FILE')).chomp
  Rack::MockRequest.new(SampleGitlab::Application).request(
    method, "/api/v4/internal/#{endpoint}", 'HTTP_GITLAB_SHARED_SECRET' => [secret].pack('m0'), 'HTTP_HOST' => 'localhost'
  )
end
Controls.reset

# The controls come before Rails, so that they are not counted as requests.
map('/-') { run Controls.new }
map(ENV.fetch('RAILS_RELATIVE_ROOT', '/')) { run SampleGitlab::Application }
