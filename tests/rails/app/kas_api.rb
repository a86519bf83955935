# frozen_string_literal: true

# The endpoints of the Kubernetes agent server (kas), as in GitLab 13.4, except for the refusal of its token.
class KasAPI < Grape::API
  helpers do
    def agent
      token = headers['Authorization'].to_s[/\ABearer (.+)\z/, 1]
      @agent ||= token && Agent.find_by(token: token)
    end

    def check_agent_token
      forbidden! unless agent
    end

    def kas_unauthorized!
      unauthorized! if ENV['RAILS_ERA'] == 'secret'
      message!(401, 'KAS JWT authentication invalid')
    end

    def visible?(project)
      project && (project.visible_to_anyone? || project == agent.project)
    end
  end

  namespace 'internal/kubernetes' do
    before { kas_unauthorized! unless Authentication::Kas.ok?(headers) }

    get '/agent_info' do
      check_agent_token
      {
        project_id: agent.project_id, agent_id: agent.id, agent_name: agent.name,
        gitaly_info: gitaly_info, gitaly_repository: gitaly_repository(agent.project)
      }
    end

    get '/project_info' do
      check_agent_token
      project = Project.find_by_id_or_path(params[:id])
      not_found! unless visible?(project)
      { project_id: project.id, gitaly_info: gitaly_info, gitaly_repository: gitaly_repository(project) }
    end

    params { requires :gitops_sync_count, type: Integer }
    post '/usage_metrics' do
      bad_request!('gitops_sync_count must be greater than or equal to zero') if params[:gitops_sync_count].negative?

      body false # 204, no body
    end
  end
end
