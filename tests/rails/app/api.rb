# frozen_string_literal: true

module API
  # Everything under /api/v4: the setup around the endpoints, as in GitLab's `lib/api/api.rb`.
  class Root < Grape::API
    prefix :api
    version 'v4', using: :path
    format :json
    content_type :json, 'application/json'
    content_type :txt, 'text/plain'
    default_error_formatter :json

    before do
      header 'Vary', 'Origin' # GitLab's CORS middleware does this
      header 'X-Frame-Options', 'SAMEORIGIN'
      header 'X-Content-Type-Options', 'nosniff'
      header 'X-Gitlab-Meta', { correlation_id: env['action_dispatch.request_id'], version: '1' }.to_json
    end

    rescue_from(ActiveRecord::RecordNotFound) { message!(404, '404 Not found') }
    rescue_from(Grape::Exceptions::Base) { |e| error!(e.message, e.status, e.headers || {}) }
    rescue_from(:all) do |e|
      Rails.logger.warn(e.full_message(highlight: false))
      message!(500, '500 Internal Server Error')
    end

    helpers CommonHelpers

    # The more specific namespace first: the before block of the shell endpoints must not run for kas.
    mount KasAPI
    mount ShellAPI

    # Takes precedence over Grape's own 405, so that a wrong method is "not found" too.
    route(:any, '*path') { error!('404 Not Found', 404) }
  end
end
