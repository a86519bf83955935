# frozen_string_literal: true

require_relative 'application'

# A real GitLab takes its time to load, and nothing listens meanwhile: Puma binds its sockets once this file is read.
sleep [Float(ENV.fetch('RAILS_BOOTED_AT', '0')) - Time.now.to_f, 0].max

SampleGitlab::Application.initialize!
Database.prepare

# A GitLab is loaded as a whole before it listens. Here, what is loaded with the first requests is loaded with these: two
# that come at the same time may wait for each other, Grape's lock with the one, that of an autoloaded file with the other.
API::Root.compile!
[['GET', 'check'], ['GET', 'discover?key_id=1'], ['POST', 'allowed?key_id=1&project=gnuwget/wget2'],
 ['POST', 'pre_receive?gl_repository=project-1'], ['GET', 'kubernetes/agent_info']].each do |method, endpoint|
  secret = File.read(ENV.fetch('RAILS_SHELL_SECRET_FILE')).chomp
  Rack::MockRequest.new(SampleGitlab::Application).request(
    method, "/api/v4/internal/#{endpoint}", 'HTTP_GITLAB_SHARED_SECRET' => [secret].pack('m0'), 'HTTP_HOST' => 'localhost'
  )
end
Controls.reset

# The controls come before Rails: what a test asks about is never counted as traffic.
map('/-') { run Controls.new }
map(ENV.fetch('RAILS_RELATIVE_ROOT', '/')) { run SampleGitlab::Application }
