# frozen_string_literal: true

# The endpoints of gitlab-shell and Gitaly.
class ShellAPI < Grape::API
  VALID_SCOPES = %w[api read_api read_repository read_user sudo write_repository].freeze

  helpers do
    def respond(code: 200, success: true, message: nil, **more)
      status code
      { status: success, message: message, **more }.compact
    end

    def refuse(message)
      { success: false, message: message }
    end

    def access_granted(project)
      respond(
        gl_repository: project.gl_repository, gl_project_path: project.path,
        gl_id: actor.identifier, gl_username: actor.user&.username, git_config_options: [],
        gitaly: { repository: gitaly_repository(project), **gitaly_info },
        gl_console_messages: []
      )
    end

    def redirect_to_geo_primary
      data = { api_endpoints: %w[/api/v4/geo/proxy_git_ssh/info_refs], gl_username: actor.user&.username,
               primary_repo: 'https://primary.example/outcome/geo.git' }
      respond(code: 300, payload: { action: 'geo_proxy_to_primary', data: data }, gl_console_messages: [])
    end

    def rate_limited
      header 'Retry-After', '60'
      message!(429, { error: 'This endpoint has been requested too many times. Try again later.' })
    end

    # The name of the project chooses the outcome.
    def check_access(project)
      return respond(code: 404, success: false, message: 'The project you were looking for could not be found.') unless project

      case project.outcome
      when nil then access_granted(project)
      when 'held' then Controls.wait_for_release && access_granted(project)
      when 'geo' then redirect_to_geo_primary
      when 'denied' then respond(code: 401, success: false, message: 'You are not allowed to push code to this project.')
      when 'timeout' then respond(code: 503, success: false, message: 'Push operation timed out')
      when 'unknown' then respond(code: 500, success: false, message: 'Unknown check result')
      when 'busy' then rate_limited
      else raise "outcome #{project.outcome}"
      end
    end

    # The reason why this actor may not do what only users may do, or nil.
    def reason_against_actor(deploy_key_text)
      return ('Could not find the given user' if params[:user_id] && actor.user.nil?) unless params[:key_id]

      return 'Could not find the given key' unless actor.key
      return deploy_key_text if actor.key.is_a?(DeployKey)

      'Could not find a user for the given key' unless actor.user
    end

    def reason_against_token
      scopes = params[:scopes]
      return 'No token name specified' if params[:name].blank?
      return 'No token scopes specified' if scopes.blank?

      invalid = scopes.find { |scope| VALID_SCOPES.exclude?(scope) }
      return "Invalid scope: '#{invalid}'. Valid scopes are: #{VALID_SCOPES}" if invalid

      Date.parse(params[:expires_at]) if params[:expires_at].present?
      'Failed to create token: Name is too long' if params[:name].length > 255
    rescue ArgumentError
      "Invalid token expiry date: '#{params[:expires_at]}'"
    end

    # An expired key is treated like an unknown one; that of a blocked user is not.
    def refuse_expired_or_blocked(key)
      not_found!('Key') if key.expired?
      message!(401, '401 Unauthorized - Key') if key.owner&.blocked
    end

    # GitLab generates these at random; here they depend on the caller, so that two responses can be compared.
    def deterministic_secret(*parts)
      Digest::SHA256.hexdigest(parts.join("\0"))
    end

    # Up to 15.4, a fingerprint in the parameters takes precedence over the key, even an empty one.
    def find_key
      if ENV['RAILS_ERA'] == 'secret'
        Key.auth.find_by(fingerprint: params.fetch(:fingerprint) { Fingerprint.md5(params.fetch(:key)) })
      else
        Key.auth.find_by(fingerprint_sha256: Fingerprint.sha256(params.fetch(:key)))
      end
    end
  end

  namespace :internal do
    before { unauthorized! unless Authentication::Shell.ok?(params, headers) }

    post('/allowed') { check_access(Project.from_params(params)) }

    post '/lfs_authenticate' do
      project = Project.from_params(params)
      not_found! unless project&.lfs_enabled
      raise ActiveRecord::RecordNotFound unless actor.key_or_user

      status 200
      deploy_key = actor.key.is_a?(DeployKey)
      {
        username: deploy_key ? "lfs+deploy-key-#{actor.key.id}" : actor.user&.username,
        lfs_token: deterministic_secret('lfs', actor.identifier, project.path),
        repository_http_path: "http://localhost/#{project.path}.git",
        expires_in: 1800
      }
    end

    get '/authorized_keys' do
      key = find_key
      not_found!('Key') unless key
      refuse_expired_or_blocked(key) if ENV['RAILS_ERA'] == 'today'

      { id: key.id, title: key.title, key: key.publishable_key, created_at: key.created_at, expires_at: key.expires_at }
    end

    # An unknown user is no error: the body is the word `null`.
    get('/discover') { actor.user&.slice(:id, :username, :name) }

    get '/check' do
      { api_version: 'v4', gitlab_version: '13.4.0', gitlab_rev: 'd69c988e6a6', redis: Controls.redis_up }
    end

    post '/two_factor_recovery_codes' do
      status 200
      reason = reason_against_actor('Deploy keys cannot be used to retrieve recovery codes')
      reason ||= 'Two-factor authentication is not enabled for this user' unless reason || actor.user.two_factor_enabled
      next refuse(reason) if reason

      { success: true, recovery_codes: (0...10).map { |n| deterministic_secret('recovery', actor.user.id, n)[0, 16] } }
    end

    post '/personal_access_token' do
      status 200
      reason = reason_against_actor('Deploy keys cannot be used to create personal access tokens')
      reason ||= reason_against_token
      next refuse(reason) if reason

      token = deterministic_secret('token', actor.user.id, params[:name])[0, 20]
      { success: true, token: token, scopes: params[:scopes], expires_at: params[:expires_at].presence }
    end

    post '/pre_receive' do
      status 200
      { reference_counter_increased: params[:gl_repository].present? }
    end

    post '/post_receive' do
      status 200
      messages = [{ message: "Hello #{actor.user&.name}", type: 'alert' }]
      messages += Array(params[:push_options]).map { |option| { message: "Seen: #{option}", type: 'basic' } }
      { messages: messages, reference_counter_decreased: params[:gl_repository].present? }
    end
  end
end
