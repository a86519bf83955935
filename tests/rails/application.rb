# frozen_string_literal: true

# Rails reads this variable when it is loaded.
ENV['DATABASE_URL'] = "sqlite3:#{File.join(ENV.fetch('RAILS_DIR'), 'gitlab.sqlite3')}"

require 'rails'
require 'active_record/railtie'
require 'action_controller/railtie'
require 'grape'
require 'jwt'

require_relative 'app/controls'
require_relative 'app/database'
require_relative 'app/authentication'
require_relative 'app/json_validation'
require_relative 'app/common_helpers'
require_relative 'app/shell_api'
require_relative 'app/kas_api'
require_relative 'app/api'

module SampleGitlab
  # The whole default middleware stack of Rails is kept (method override, request id, runtime, ETag, conditional GET,
  # …): the gateway has to cope with its effect on requests and responses.
  class Application < Rails::Application
    config.root = ENV.fetch('RAILS_DIR')
    config.load_defaults 6.1
    config.eager_load = false # Nothing to find: every file is required above.
    config.secret_key_base = 'only a test' * 8
    config.logger = ActiveSupport::Logger.new(File.join(ENV.fetch('RAILS_DIR'), 'rails.log'))
    config.log_level = :warn

    # Outermost, so that it sees method and path as they came over the wire.
    config.middleware.insert_before 0, Controls::Count
    config.middleware.use JsonValidation

    routes.append { mount API::Root => '/' }
  end
end
