# frozen_string_literal: true

require_relative 'application'

SampleGitlab::Application.initialize!
Database.prepare

# The controls come before Rails: what a test asks about is never counted as traffic.
map('/-') { run Controls.new }
map(ENV.fetch('RAILS_RELATIVE_ROOT', '/')) { run SampleGitlab::Application }
